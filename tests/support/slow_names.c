/* A resolver that does not answer: whoever looks up a name in ".slow.invalid" waits, and the file $SLOW_NAMES says that
 * somebody does. For LD_PRELOAD; tests/support/slow_names.py builds it. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef int look_up(const char *, const char *, const struct addrinfo *, struct addrinfo **);

int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **found)
{
    look_up *real = (look_up *)dlsym(RTLD_NEXT, "getaddrinfo");
    const char *flag = getenv("SLOW_NAMES");

    if (name != NULL && flag != NULL && strstr(name, ".slow.invalid") != NULL) {
        close(open(flag, O_CREAT | O_WRONLY, 0600));
        for (;;)
            pause();
    }
    return real(name, service, hints, found);
}
