/* A PKCS #11 module that is another one, $FAULTY_TOKEN_MODULE, but for what the files of the directory $FAULTY_TOKEN
 * say, each named like a function of it:
 *
 *     hang          it does not return while the file says so
 *     0x30          it returns that, and does nothing
 *     garble        C_Sign: it signs, and one bit of the signature is another
 *     0x20000       C_GetTokenInfo: the token has these flags, too
 *
 * The file "asked" says that somebody hangs; "begun" has a letter for each C_Initialize that had something to look at;
 * "sessions" has a letter for each session that is opened ("+") and closed
 * ("-"). tests/support/softhsm.py builds it. */

#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long number;
struct functions { /* CK_FUNCTION_LIST of version 2, in the order of pkcs11f.h. */
    unsigned char version[2];
    number (*each[68])();
};
enum { INITIALIZE = 0, TOKEN_INFO = 6, OPEN_SESSION = 12, CLOSE_SESSION = 13, LOGIN = 18, SIGN = 43, CKR_GENERAL_ERROR = 5, FLAGS = 96, ROOM = 4096 };

static struct functions ours, theirs;

static void path_of(char *path, const char *name)
{
    const char *directory = getenv("FAULTY_TOKEN");
    snprintf(path, ROOM, "%s/%s", directory == NULL ? "/nonexistent" : directory, name);
}

static void note(const char *name, const char *text)
{
    char path[ROOM];
    int file;

    path_of(path, name);
    file = open(path, O_CREAT | O_APPEND | O_WRONLY, 0600);
    if (file >= 0) {
        if (write(file, text, strlen(text)) < 0)
            abort();
        close(file);
    }
}

/* Return what the file called name says, waiting as long as that is "hang". */
static const char *told(const char *name, char *text)
{
    char path[ROOM];
    ssize_t length;
    int file;

    path_of(path, name);
    for (;;) {
        file = open(path, O_RDONLY);
        if (file < 0)
            return "";
        length = read(file, text, 64);
        close(file);
        text[length < 0 ? 0 : length] = 0;
        if (strncmp(text, "hang", 4) != 0)
            return text;
        note("asked", "?");
        usleep(20000);
    }
}

static number initialize(void *arguments)
{
    char path[ROOM], text[65];
    number result;
    int hangs;

    path_of(path, "C_Initialize");
    hangs = access(path, F_OK) == 0;
    result = strtoul(told("C_Initialize", text), NULL, 0);
    if (hangs)
        note("begun", "b");
    return result != 0 ? result : theirs.each[INITIALIZE](arguments);
}

static number token_info(number slot, unsigned char *info)
{
    char text[65];
    number flags, more = strtoul(told("C_GetTokenInfo", text), NULL, 0), result = theirs.each[TOKEN_INFO](slot, info);

    if (result == 0) {
        memcpy(&flags, info + FLAGS, sizeof flags); /* After label, manufacturer, model and serial number. */
        flags |= more;
        memcpy(info + FLAGS, &flags, sizeof flags);
    }
    return result;
}

static number open_session(number slot, number flags, void *application, void *notify, number *session)
{
    char text[65];
    number result = strtoul(told("C_OpenSession", text), NULL, 0);

    if (result == 0)
        result = theirs.each[OPEN_SESSION](slot, flags, application, notify, session);
    if (result == 0)
        note("sessions", "+");
    return result;
}

static number close_session(number session)
{
    number result = theirs.each[CLOSE_SESSION](session);

    if (result == 0)
        note("sessions", "-");
    return result;
}

static number login(number session, number user, unsigned char *pin, number length)
{
    char text[65];
    number result = strtoul(told("C_Login", text), NULL, 0);

    return result != 0 ? result : theirs.each[LOGIN](session, user, pin, length);
}

static number sign(number session, unsigned char *data, number length, unsigned char *signature, number *room)
{
    char text[65];
    const char *what = told("C_Sign", text);
    number result = strtoul(what, NULL, 0);

    if (result == 0)
        result = theirs.each[SIGN](session, data, length, signature, room);
    if (result == 0 && signature != NULL && strncmp(what, "garble", 6) == 0)
        signature[*room - 1] ^= 1;
    return result;
}

number C_GetFunctionList(struct functions **list)
{
    const char *module = getenv("FAULTY_TOKEN_MODULE");
    void *library = module == NULL ? NULL : dlopen(module, RTLD_NOW | RTLD_LOCAL);
    number (*get)(struct functions **) =
        library == NULL ? NULL : (number (*)(struct functions **))dlsym(library, "C_GetFunctionList");
    struct functions *found;

    if (get == NULL || get(&found) != 0)
        return CKR_GENERAL_ERROR;
    theirs = ours = *found;
    ours.each[INITIALIZE] = (number (*)())initialize;
    ours.each[TOKEN_INFO] = (number (*)())token_info;
    ours.each[OPEN_SESSION] = (number (*)())open_session;
    ours.each[CLOSE_SESSION] = (number (*)())close_session;
    ours.each[LOGIN] = (number (*)())login;
    ours.each[SIGN] = (number (*)())sign;
    *list = &ours;
    return 0;
}
