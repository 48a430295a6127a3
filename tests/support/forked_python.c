/* What stands for ``python`` where a program of ours is forked: `tests.support.programs.forking_python` compiles it.

       FOLDER/python ARGUMENT...

   FOLDER has a socket for each program whose fork server takes orders, named as its package or module is, and a link
   `interpreter`. Arguments that begin with ``-m PROGRAM``, or with a module of its package, are ordered there, with this
   process's environment, folder and standard streams, as `tests.support.fork_server.order` says: from then on this
   process is what its parent sees of the forked one. Everything else is for the interpreter. FOLDER/python is
   ``sys.executable`` of a forked process, so that those it starts are forked, too.

   Rules
   -----
   1. A signal that a program of ours listens to is sent on to the forked process. Whatever else ends this one, SIGKILL,
      too, kills that: its fork server sees the connection closed. That takes a moment: what a killed process leaves
      behind is for tests that start it afresh.
   2. It ends as the forked process has ended: by the same exit code, or the same signal.
   3. Whose environment has anything for the interpreter or the loader that the fork server has not is not forked; nor
      is the program that is named by STARTED_AFRESH.
   4. It takes no time: there are hundreds of it, and in Python each would take longer than the fork. */

#define _GNU_SOURCE
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { LARGEST_ORDER = 128 * 1024, LONGEST_ANSWER = 16 };

static const int SENT_ON[] = {SIGHUP, SIGINT, SIGTERM, SIGUSR1, SIGUSR2};
static char order[LARGEST_ORDER];
static size_t length;
static volatile sig_atomic_t forked;

static void send_on(int number) { kill(forked, number); }

static void fail(const char *why) {
  perror(why);
  exit(1);
}

static void add(const char *field) {
  size_t size = strlen(field) + 1;
  if (length + size > sizeof order) {
    fputs("the arguments and the environment are too long for an order\n", stderr);
    exit(1);
  }
  memcpy(order + length, field, size);
  length += size;
}

static void make_order(char **arguments, int count, const char *executable) {
  char folder[PATH_MAX], number[LONGEST_ANSWER];
  if (!getcwd(folder, sizeof folder)) fail("getcwd");
  snprintf(number, sizeof number, "%d", count - 1);
  add(folder);
  add(executable);
  for (char **each = arguments; each < arguments + count; each++) {
    add(*each);
    if (each == arguments) add(number);
  }
  for (char **each = environ; *each; each++) add(*each);
}

/* Return a socket that is connected to the fork server of `module`; -1 if there is none. */
static int connected(const char *folder, const char *module) {
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  int server = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  int size = snprintf(address.sun_path, sizeof address.sun_path, "%s/%s", folder, module);
  if (server >= 0 && size > 0 && (size_t)size < sizeof address.sun_path)
    for (char *dot; !strchr(module, '/');) {
      if (!connect(server, (struct sockaddr *)&address, sizeof address)) return server;
      if (!(dot = strrchr(strrchr(address.sun_path, '/'), '.'))) break;
      *dot = 0;
    }
  if (server >= 0) close(server);
  return -1;
}

static void send_order(int server) {
  union {
    char space[CMSG_SPACE(3 * sizeof(int))];
    struct cmsghdr aligned;
  } control = {0};
  struct iovec content = {order, length};
  struct msghdr message = {
      .msg_iov = &content, .msg_iovlen = 1, .msg_control = control.space, .msg_controllen = sizeof control.space};
  struct cmsghdr *streams = CMSG_FIRSTHDR(&message);
  *streams = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(3 * sizeof(int))};
  memcpy(CMSG_DATA(streams), (int[]){0, 1, 2}, 3 * sizeof(int));
  if (sendmsg(server, &message, 0) < 0) fail("sendmsg");
}

/* Return whether there is a number in what `server` says. */
static int heard(int server, int *number) {
  char said[LONGEST_ANSWER] = {0};
  if (recv(server, said, sizeof said - 1, 0) <= 0) return 0;
  *number = atoi(said);
  return 1;
}

static void end_as_it_does(int server, const sigset_t *before) {
  struct sigaction action = {.sa_handler = send_on, .sa_flags = SA_RESTART};
  int code;
  for (size_t each = 0; each < sizeof SENT_ON / sizeof *SENT_ON; each++) sigaction(SENT_ON[each], &action, NULL);
  sigprocmask(SIG_SETMASK, before, NULL);
  if (!heard(server, &code)) {
    fputs("the fork server has ended\n", stderr);
    exit(1);
  }
  if (code >= 0) _exit(code);
  signal(-code, SIG_DFL);
  kill(getpid(), -code);
  abort();
}

int main(int count, char **arguments) {
  char own[PATH_MAX] = {0}, folder[PATH_MAX], link[PATH_MAX + 16], python[PATH_MAX] = {0};
  if (readlink("/proc/self/exe", own, sizeof own - 1) < 0) fail("/proc/self/exe");
  strcpy(folder, own);
  *strrchr(folder, '/') = 0;
  if (count > 2 && !strcmp(arguments[1], "-m")) {
    sigset_t sent_on, before;
    sigemptyset(&sent_on);
    for (size_t each = 0; each < sizeof SENT_ON / sizeof *SENT_ON; each++) sigaddset(&sent_on, SENT_ON[each]);
    sigprocmask(SIG_BLOCK, &sent_on, &before); /* Nobody knows yet whom to send it on to. */
    const char *afresh = getenv("STARTED_AFRESH");
    int server = afresh && !strcmp(afresh, arguments[2]) ? -1 : connected(folder, arguments[2]), pid;
    if (server >= 0) {
      make_order(arguments + 2, count - 2, own);
      send_order(server);
      if (heard(server, &pid)) {
        forked = pid;
        end_as_it_does(server, &before);
      }
      close(server); /* Rule 3. */
    }
    sigprocmask(SIG_SETMASK, &before, NULL);
  }
  snprintf(link, sizeof link, "%s/interpreter", folder);
  if (readlink(link, python, sizeof python - 1) < 0) fail(link);
  arguments[0] = python;
  execv(python, arguments);
  fail(python);
}
