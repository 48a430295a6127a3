/* A device on Cisco's libest: fetches the CA's certificates, asks for the attributes, enrols by token, and renews.
 *
 *     libest_client ANCHORS HOST PORT NAME TOKEN
 *
 * A line for each step, "STEP: ERROR, HTTP STATUS"; the subject of what it got; exit status 0 if all went well.
 */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <openssl/ec.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <est/est.h>

static int failed = 0;

/* In what OpenSSL does not trust we do not either: 0 is "no, as it says". */
static int judge(X509 *certificate, int error)
{
    (void)certificate;
    (void)error;
    return 0;
}

static void quiet(char *format, va_list arguments)
{
    (void)format;
    (void)arguments;
}

static void told(const char *step, EST_ERROR error, EST_CTX *context)
{
    printf("%s: %s, HTTP %d\n", step, EST_ERR_NUM_TO_STR(error), est_client_get_last_http_status(context));
    failed |= error != EST_ERR_NONE;
}

static EST_CTX *client_of(char **arguments, unsigned char *anchors, int size, char *user, char *token, X509 *own,
                          EVP_PKEY *key)
{
    EST_CTX *context = est_client_init(anchors, size, EST_CERT_FORMAT_PEM, judge);
    unsigned char *attributes;
    int length;

    if (context == NULL || est_client_set_auth(context, user, token, own, key) != EST_ERR_NONE) {
        exit(2);
    }
    est_client_set_server(context, arguments[2], atoi(arguments[3]), NULL);
    told("cacerts", est_client_get_cacerts(context, &length), context);
    told("csrattrs", est_client_get_csrattrs(context, &attributes, &length), context);
    return context;
}

static X509 *issued(EST_CTX *context, int length)
{
    unsigned char *text = calloc(1, (size_t)length + 1);
    BIO *decoding;
    PKCS7 *answer;

    est_client_copy_enrolled_cert(context, text);
    decoding = BIO_push(BIO_new(BIO_f_base64()), BIO_new_mem_buf(text, length));
    answer = d2i_PKCS7_bio(decoding, NULL);
    return answer == NULL ? NULL : sk_X509_value(answer->d.sign->cert, 0);
}

int main(int count, char **arguments)
{
    unsigned char anchors[65536];
    EVP_PKEY *key = EVP_EC_gen("P-256");
    EST_CTX *context;
    X509 *own;
    FILE *file;
    int size, length = 0;

    if (count != 6 || (file = fopen(arguments[1], "rb")) == NULL) {
        return 2;
    }
    size = (int)fread(anchors, 1, sizeof anchors, file);
    fclose(file);
    est_init_logger(EST_LOG_LVL_ERR, quiet);

    context = client_of(arguments, anchors, size, arguments[4], arguments[5], NULL, NULL);
    told("enrol", est_client_enroll(context, arguments[4], &length, key), context);
    if (failed || (own = issued(context, length)) == NULL) {
        return 1;
    }
    X509_NAME_print_ex_fp(stdout, X509_get_subject_name(own), 0, XN_FLAG_ONELINE);
    printf("\n");

    context = client_of(arguments, anchors, size, NULL, NULL, own, key);
    told("renew", est_client_reenroll(context, own, &length, key), context);
    return failed;
}
