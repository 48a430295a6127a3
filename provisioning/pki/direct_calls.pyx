# cython: language_level=3, binding=False, always_allow_keywords=False
"""Calls OpenSSL's functions by their addresses, and is called by it, without `ctypes`: a tenth of the instructions.

Theory
------
`ctypes` converts each argument by a type that it was told at run time; here the C compiler knows the types. That is
all. Which library, whether it has the functions, and what they are called with is decided elsewhere
(`provisioning.pki.openssl_library`); where this module was not built, `ctypes` calls the same functions. It is built
with the hot path (deploy/compiled/setup.py). What it gains: docs/decisions/0326.

Rules
-----
1. Each function takes and returns what its twin of `ctypes` does, but for nothing, which is 0 here and may be None
   there. tests/properties/test_direct_calls_properties.py compares them.
2. The GIL is kept, as by `ctypes.PyDLL`: these calls are shorter than releasing it.
3. Nothing can be raised through OpenSSL: whatever is raised in a call back, its answer is its refusal.
4. A function is called once `bind` was given its address, and not before.
5. Bytes are bytes, and as many as is said; what is at 0 is not read. Otherwise memory of others would be given away:
   here nothing is raised for a wrong argument unless it is looked at. `ctypes` believes what it is told, too.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.errno cimport errno

ctypedef void *address
ctypedef const unsigned char *octets

cdef struct Functions:
    # In the order of NAMES.
    int (*SSL_do_handshake)(address) noexcept
    int (*SSL_read)(address, address, int) noexcept
    int (*SSL_get_error)(address, int) noexcept
    int (*SSL_session_reused)(address) noexcept
    address (*SSL_get_session)(address) noexcept
    int (*SSL_new_session_ticket)(address) noexcept
    address (*SSL_get_SSL_CTX)(address) noexcept
    int (*SSL_CTX_remove_session)(address, address) noexcept
    void (*SSL_set_read_ahead)(address, int) noexcept
    int (*SSL_has_pending)(address) noexcept
    long (*SSL_ctrl)(address, int, long, address) noexcept
    address (*SSL_get_peer_cert_chain)(address) noexcept
    void (*SSL_set_shutdown)(address, int) noexcept
    int (*SSL_shutdown)(address) noexcept
    void (*SSL_set_info_callback)(address, address) noexcept
    void (*SSL_set_msg_callback)(address, address) noexcept
    int (*SSL_set_rfd)(address, int) noexcept
    void (*SSL_set0_rbio)(address, address) noexcept
    address (*SSL_get_pending_cipher)(address) noexcept
    int (*EVP_PKEY_set_type)(address, int) noexcept
    void (*EVP_PKEY_free)(address) noexcept
    address (*OPENSSL_sk_pop)(address) noexcept
    void (*X509_free)(address) noexcept
    int (*BIO_up_ref)(address) noexcept
    int (*BIO_write)(address, address, int) noexcept
    long (*BIO_ctrl)(address, int, long, address) noexcept
    void (*ERR_clear_error)() noexcept
    int (*SSL_SESSION_set1_ticket_appdata)(address, octets, size_t) noexcept
    int (*SSL_SESSION_get0_ticket_appdata)(address, address *, size_t *) noexcept
    int (*SSL_SESSION_set1_id)(address, octets, unsigned int) noexcept
    address (*SSL_SESSION_get0_cipher)(address) noexcept
    long long (*SSL_SESSION_get_time_ex)(address) noexcept
    long (*SSL_SESSION_get_timeout)(address) noexcept
    address (*SSL_CTX_sessions)(address) noexcept
    address (*OPENSSL_LH_retrieve)(address, address) noexcept

NAMES = (
    "SSL_do_handshake",
    "SSL_read",
    "SSL_get_error",
    "SSL_session_reused",
    "SSL_get_session",
    "SSL_new_session_ticket",
    "SSL_get_SSL_CTX",
    "SSL_CTX_remove_session",
    "SSL_set_read_ahead",
    "SSL_has_pending",
    "SSL_ctrl",
    "SSL_get_peer_cert_chain",
    "SSL_set_shutdown",
    "SSL_shutdown",
    "SSL_set_info_callback",
    "SSL_set_msg_callback",
    "SSL_set_rfd",
    "SSL_set0_rbio",
    "SSL_get_pending_cipher",
    "EVP_PKEY_set_type",
    "EVP_PKEY_free",
    "OPENSSL_sk_pop",
    "X509_free",
    "BIO_up_ref",
    "BIO_write",
    "BIO_ctrl",
    "ERR_clear_error",
    "SSL_SESSION_set1_ticket_appdata",
    "SSL_SESSION_get0_ticket_appdata",
    "SSL_SESSION_set1_id",
    "SSL_SESSION_get0_cipher",
    "SSL_SESSION_get_time_ex",
    "SSL_SESSION_get_timeout",
    "SSL_CTX_sessions",
    "OPENSSL_LH_retrieve",
)

cdef Functions its
cdef int errno_then = 0


def bind(name, size_t place):
    """Return what calls OpenSSL's function *name* at the address *place*; None: it is none of these."""
    if name not in NAMES or not place:
        return None
    (<address *>&its)[<size_t>NAMES.index(name)] = <address>place
    return globals()[name]


def SSL_do_handshake(size_t session):
    global errno_then
    cdef int result = its.SSL_do_handshake(<address>session)
    errno_then = errno
    return result


def SSL_read(size_t session, size_t place, int size):
    global errno_then
    cdef int result = its.SSL_read(<address>session, <address>place, size)
    if result <= 0:
        errno_then = errno
    return result


cdef char record[16384]


def read_record(size_t session):
    """Return what the session's next record holds; if there is none, what `SSL_read` says of it."""
    global errno_then
    cdef int result = its.SSL_read(<address>session, record, sizeof(record))
    if result > 0:
        return PyBytes_FromStringAndSize(record, result)
    errno_then = errno
    return result


def get_errno():
    """Return `errno` as the last `SSL_do_handshake`, failed `SSL_read` or `read_record` without one left it."""
    return errno_then


def SSL_get_error(size_t session, int result): return its.SSL_get_error(<address>session, result)
def SSL_session_reused(size_t session): return its.SSL_session_reused(<address>session)
def SSL_get_session(size_t session): return <size_t>its.SSL_get_session(<address>session)
def SSL_new_session_ticket(size_t session): return its.SSL_new_session_ticket(<address>session)
def SSL_get_SSL_CTX(size_t session): return <size_t>its.SSL_get_SSL_CTX(<address>session)
def SSL_CTX_remove_session(size_t c, size_t s): return its.SSL_CTX_remove_session(<address>c, <address>s)
def SSL_set_read_ahead(size_t session, bint ahead): its.SSL_set_read_ahead(<address>session, ahead)
def SSL_has_pending(size_t session): return its.SSL_has_pending(<address>session)
def SSL_get_peer_cert_chain(size_t session): return <size_t>its.SSL_get_peer_cert_chain(<address>session)
def SSL_set_shutdown(size_t session, int mode): its.SSL_set_shutdown(<address>session, mode)
def SSL_shutdown(size_t session): return its.SSL_shutdown(<address>session)
def SSL_set_info_callback(size_t session, size_t call): its.SSL_set_info_callback(<address>session, <address>call)
def SSL_set_msg_callback(size_t session, size_t call): its.SSL_set_msg_callback(<address>session, <address>call)
def SSL_set_rfd(size_t session, int descriptor): return its.SSL_set_rfd(<address>session, descriptor)
def SSL_set0_rbio(size_t session, size_t bio): its.SSL_set0_rbio(<address>session, <address>bio)
def SSL_get_pending_cipher(size_t session): return <size_t>its.SSL_get_pending_cipher(<address>session)
def EVP_PKEY_set_type(size_t key, int kind): return its.EVP_PKEY_set_type(<address>key, kind)
def EVP_PKEY_free(size_t key): its.EVP_PKEY_free(<address>key)
def OPENSSL_sk_pop(size_t stack): return <size_t>its.OPENSSL_sk_pop(<address>stack)
def X509_free(size_t certificate): its.X509_free(<address>certificate)
def BIO_up_ref(size_t bio): return its.BIO_up_ref(<address>bio)
def BIO_write(size_t bio, size_t place, int size): return its.BIO_write(<address>bio, <address>place, size)
def ERR_clear_error(): its.ERR_clear_error()
def SSL_SESSION_get0_cipher(size_t session): return <size_t>its.SSL_SESSION_get0_cipher(<address>session)
def SSL_SESSION_get_time_ex(size_t session): return its.SSL_SESSION_get_time_ex(<address>session)
def SSL_SESSION_get_timeout(size_t session): return its.SSL_SESSION_get_timeout(<address>session)
def SSL_CTX_sessions(size_t context): return <size_t>its.SSL_CTX_sessions(<address>context)
def OPENSSL_LH_retrieve(size_t t, size_t key): return <size_t>its.OPENSSL_LH_retrieve(<address>t, <address>key)


def SSL_ctrl(size_t session, int what, long number, size_t place):
    return its.SSL_ctrl(<address>session, what, number, <address>place)


def BIO_ctrl(size_t bio, int what, long number, size_t place):
    return its.BIO_ctrl(<address>bio, what, number, <address>place)


cdef octets first_of(bytes data, size_t size) except NULL:
    """Return where *data* is; raise an error if it is shorter than *size*."""
    if <size_t>len(data) < size:
        raise ValueError(f"{len(data)} bytes are not {size}")
    return <octets>PyBytes_AS_STRING(data)


def SSL_SESSION_set1_ticket_appdata(size_t session, bytes data not None, size_t size):
    return its.SSL_SESSION_set1_ticket_appdata(<address>session, first_of(data, size), size)


def SSL_SESSION_set1_id(size_t session, bytes name not None, unsigned int size):
    return its.SSL_SESSION_set1_id(<address>session, first_of(name, size), size)


def SSL_SESSION_get0_ticket_appdata(size_t session, size_t held, size_t size):
    return its.SSL_SESSION_get0_ticket_appdata(<address>session, <address *>held, <size_t *>size)


def string_at(size_t place, size_t size):
    """Return a copy of the *size* bytes at *place*."""
    if not place and size:  # Python would return as many bytes as it finds, of whatever was there.
        raise ValueError("nothing is at 0")
    return PyBytes_FromStringAndSize(<char *>place, size)


def word_at(size_t place):
    """Return the pointer at *place*."""
    if not place:
        raise ValueError("nothing is at 0")
    return <size_t>(<address *>place)[0]


def set_null(size_t place):
    """Make the pointer at *place* one to nothing."""
    if not place:
        raise ValueError("nothing is at 0")
    (<address *>place)[0] = NULL


# What OpenSSL calls. A function of C has no room for what it is to call in turn: so each is made once.

cdef class Answer:
    """What is called for OpenSSL, and the answer if that raises anything."""

    cdef object call
    cdef object refusal

    def __init__(self, call, refusal):
        self.call = call
        self.refusal = refusal


cdef Answer hello = None
cdef Answer message = None
cdef Answer step = None
cdef Answer find = None
cdef Answer find_other = None


cdef int on_hello(address session, int *alert, address argument) noexcept with gil:
    try:
        return hello.call(<size_t>session, <size_t>alert, <size_t>argument)
    except BaseException:
        return hello.refusal


cdef int on_find(address session, octets name, size_t size, address *place) noexcept with gil:
    try:
        return find.call(<size_t>session, <size_t>name, size, <size_t>place)
    except BaseException:
        return find.refusal


cdef int on_find_other(address session, octets name, size_t size, address *place) noexcept with gil:
    try:
        return find_other.call(<size_t>session, <size_t>name, size, <size_t>place)
    except BaseException:
        return find_other.refusal


cdef void on_message(
    int direction, int version, int kind, address place, size_t size, address session, address argument
) noexcept with gil:
    try:
        message.call(direction, version, kind, <size_t>place, size, <size_t>session, <size_t>argument)
    except BaseException:
        message.refusal(direction, version, kind, <size_t>place, size, <size_t>session, <size_t>argument)


cdef void on_step(address session, int where, int value) noexcept with gil:
    try:
        step.call(<size_t>session, where, value)
    except BaseException:
        pass


def callback(kind, call, refusal):
    """Return the address of what OpenSSL is to call; 0: there is none of this *kind* left.

    That is what `provisioning.pki.openssl_library.callback` is given, but *kind*: the name of a type there.
    """
    global hello, message, step, find, find_other
    if kind == "hello" and hello is None:
        hello = Answer(call, refusal)
        return <size_t>&on_hello
    if kind == "message" and message is None:
        message = Answer(call, refusal)
        return <size_t>&on_message
    if kind == "step" and step is None:
        step = Answer(call, refusal)
        return <size_t>&on_step
    if kind == "find" and find is None:
        find = Answer(call, refusal)
        return <size_t>&on_find
    if kind == "find" and find_other is None:
        find_other = Answer(call, refusal)
        return <size_t>&on_find_other
    return 0
