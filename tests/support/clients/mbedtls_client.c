/* A device with Mbed TLS, as in ESP-IDF and Zephyr: connects, sends the bytes of its standard input, and prints what it
   gets up to a PINGRESP. Once more for each further round, resuming the TLS session of the one before.

       mbedtls_client PORT CAFILE PEM 1.2|1.3 ROUNDS FRAGMENT

   PEM has its key and certificates; "-": none. FRAGMENT: most bytes of a record's content (RFC 6066 4); 0: any.
   Prints "answer HEX" in each round, or "alert NUMBER" (RFC 8446 6) or "failed NUMBER", and ends. */
#define MBEDTLS_ALLOW_PRIVATE_ACCESS /* The number of an alert is not public. */
#include <mbedtls/ctr_drbg.h>
#include <mbedtls/entropy.h>
#include <mbedtls/net_sockets.h>
#include <mbedtls/ssl.h>
#include <mbedtls/x509_crt.h>
#include <psa/crypto.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static mbedtls_entropy_context entropy;
static mbedtls_ctr_drbg_context random_numbers;
static mbedtls_x509_crt anchors, own;
static mbedtls_pk_context key;
static mbedtls_ssl_session session;
static int has_session;

static int ended(mbedtls_ssl_context *tls, int code) {
    if (code == MBEDTLS_ERR_SSL_FATAL_ALERT_MESSAGE) printf("alert %d\n", tls->in_msg[1]);
    else printf("failed -0x%x\n", -code);
    return 1;
}

static void keep_session(mbedtls_ssl_context *tls) {
    mbedtls_ssl_session_free(&session);
    mbedtls_ssl_session_init(&session);
    has_session = mbedtls_ssl_get_session(tls, &session) == 0;
}

static int talk(mbedtls_ssl_context *tls, const unsigned char *said, size_t size, int older) {
    unsigned char heard[1024];
    size_t sent = 0, length = 0;
    int code;
    while ((code = mbedtls_ssl_handshake(tls)) != 0)
        if (code != MBEDTLS_ERR_SSL_WANT_READ && code != MBEDTLS_ERR_SSL_WANT_WRITE) return ended(tls, code);
    while (sent < size) {
        if ((code = mbedtls_ssl_write(tls, said + sent, size - sent)) < 0) return ended(tls, code);
        sent += code;
    }
    while (length < 2 || heard[length - 2] != 0xd0) {
        code = mbedtls_ssl_read(tls, heard + length, sizeof heard - length);
        if (code == MBEDTLS_ERR_SSL_RECEIVED_NEW_SESSION_TICKET) keep_session(tls);
        else if (code <= 0 && code != MBEDTLS_ERR_SSL_WANT_READ) return ended(tls, code);
        else if (code > 0) length += code;
    }
    if (older) keep_session(tls); /* In TLS 1.2 the handshake itself has named it. */
    printf("answer ");
    for (size_t each = 0; each < length; each++) printf("%02x", heard[each]);
    puts("");
    mbedtls_ssl_write(tls, (const unsigned char *)"\xe0\0", 2);
    mbedtls_ssl_close_notify(tls);
    return 0;
}

static int visit(const char *port, int older, int fragment, int has_own, const unsigned char *said, size_t size) {
    mbedtls_ssl_config config;
    mbedtls_ssl_context tls;
    mbedtls_net_context to;
    mbedtls_ssl_config_init(&config), mbedtls_ssl_init(&tls), mbedtls_net_init(&to);
    mbedtls_ssl_config_defaults(&config, MBEDTLS_SSL_IS_CLIENT, MBEDTLS_SSL_TRANSPORT_STREAM, MBEDTLS_SSL_PRESET_DEFAULT);
    mbedtls_ssl_conf_ca_chain(&config, &anchors, NULL);
    mbedtls_ssl_conf_rng(&config, mbedtls_ctr_drbg_random, &random_numbers);
    mbedtls_ssl_conf_tls13_enable_signal_new_session_tickets(&config, MBEDTLS_SSL_TLS1_3_SIGNAL_NEW_SESSION_TICKETS_ENABLED);
    if (older) mbedtls_ssl_conf_max_tls_version(&config, MBEDTLS_SSL_VERSION_TLS1_2);
    else mbedtls_ssl_conf_min_tls_version(&config, MBEDTLS_SSL_VERSION_TLS1_3);
    if (has_own) mbedtls_ssl_conf_own_cert(&config, &own, &key);
    if (fragment) mbedtls_ssl_conf_max_frag_len(&config, fragment == 512 ? 1 : fragment == 1024 ? 2 : fragment == 2048 ? 3 : 4);
    if (mbedtls_ssl_setup(&tls, &config) || mbedtls_ssl_set_hostname(&tls, "localhost")) return 1;
    if (has_session && mbedtls_ssl_set_session(&tls, &session)) return 1;
    if (mbedtls_net_connect(&to, "127.0.0.1", port, MBEDTLS_NET_PROTO_TCP)) return 1;
    mbedtls_ssl_set_bio(&tls, &to, mbedtls_net_send, mbedtls_net_recv, NULL);
    int failed = talk(&tls, said, size, older);
    mbedtls_net_free(&to), mbedtls_ssl_free(&tls), mbedtls_ssl_config_free(&config);
    return failed;
}

int main(int count, char **words) {
    if (count < 7) return 1;
    static unsigned char said[1 << 20];
    size_t size = fread(said, 1, sizeof said, stdin);
    int older = strcmp(words[4], "1.2") == 0, has_own = strcmp(words[3], "-") != 0;
    mbedtls_entropy_init(&entropy), mbedtls_ctr_drbg_init(&random_numbers), mbedtls_pk_init(&key);
    mbedtls_x509_crt_init(&anchors), mbedtls_x509_crt_init(&own), mbedtls_ssl_session_init(&session);
    if (psa_crypto_init() || mbedtls_ctr_drbg_seed(&random_numbers, mbedtls_entropy_func, &entropy, NULL, 0)) return 1;
    if (mbedtls_x509_crt_parse_file(&anchors, words[2])) return 1;
    if (has_own && mbedtls_x509_crt_parse_file(&own, words[3])) return 1;
    if (has_own && mbedtls_pk_parse_keyfile(&key, words[3], NULL, mbedtls_ctr_drbg_random, &random_numbers)) return 1;
    for (int round = atoi(words[5]); round > 0; round--)
        if (visit(words[1], older, atoi(words[6]), has_own, said, size)) return 2;
    return 0;
}
