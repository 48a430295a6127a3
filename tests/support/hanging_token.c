/* A PKCS #11 module that is another one, $HANGING_TOKEN_MODULE, but for this: while the file $HANGING_TOKEN is there,
 * C_Sign does not return; the file of that name with ".asked" says that somebody waits. tests/support/softhsm.py builds
 * it. */

#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long number;
typedef number sign(number, unsigned char *, number, unsigned char *, number *);
struct functions { /* CK_FUNCTION_LIST of version 2: C_Initialize is 0, as pkcs11f.h has them in order. */
    unsigned char version[2];
    void *each[68];
};
enum { C_SIGN = 43, CKR_GENERAL_ERROR = 5 };

static struct functions ours;
static sign *theirs;

static number waits(number session, unsigned char *data, number length, unsigned char *signature, number *room)
{
    const char *flag = getenv("HANGING_TOKEN");
    char asked[4096];

    while (flag != NULL && access(flag, F_OK) == 0) {
        snprintf(asked, sizeof asked, "%s.asked", flag);
        close(open(asked, O_CREAT | O_WRONLY, 0600));
        usleep(20000);
    }
    return theirs(session, data, length, signature, room);
}

number C_GetFunctionList(struct functions **list)
{
    const char *module = getenv("HANGING_TOKEN_MODULE");
    void *library = module == NULL ? NULL : dlopen(module, RTLD_NOW | RTLD_LOCAL);
    number (*get)(struct functions **) =
        library == NULL ? NULL : (number (*)(struct functions **))dlsym(library, "C_GetFunctionList");
    struct functions *found;

    if (get == NULL || get(&found) != 0)
        return CKR_GENERAL_ERROR;
    memcpy(&ours, found, sizeof ours);
    theirs = (sign *)ours.each[C_SIGN];
    ours.each[C_SIGN] = (void *)waits;
    *list = &ours;
    return 0;
}
