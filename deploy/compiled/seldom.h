/* Tells the compiler which of mypyc's functions run only where an exception passes: what leads to them is put apart.
 *
 * There are sixteen thousand such places, among the code that runs. Nothing here changes what a function does.
 */
struct _object;

void CPy_AddTraceback(const char *, const char *, int, struct _object *) __attribute__((cold));
void CPy_TypeError(const char *, struct _object *) __attribute__((cold));
void CPy_TypeErrorTraceback(const char *, const char *, int, struct _object *, const char *, struct _object *)
    __attribute__((cold));
