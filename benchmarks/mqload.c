/* mqload: a small native load generator for MQTT over mutual TLS (OpenSSL, epoll, one thread).
 *
 * Build:  gcc -O2 -o mqload mqload.c -lssl -lcrypto        (Debian: gcc libssl-dev)
 * It only talks to 127.0.0.1, stops by itself, and prints one JSON object a phase on standard output.
 *
 *   -p PORT         broker port on 127.0.0.1                     -a FILE   CA file that signed the broker's certificate
 *   -D DIR          publishers' credentials: DIR/ID.crt (+ chain) and DIR/ID.key; ID is the client identifier
 *   -n N            number of publishers: the first N of DIR, by name (with -c/-k instead of -D: N clients "c0", "c1", ...)
 *   -c CRT -k KEY   one credential for every publisher
 *   -s N            number of subscribers                        -C CRT -K KEY  their credential (default: as publishers)
 *   -I ID           subscribers' client identifier; with more than one: ID-0, ID-1, ... (default "sub")
 *   -t TOPIC        topic template, %s = client identifier of the publisher (default "d/%s/t")
 *   -f FILTER       subscribers' topic filter (default "d/#")
 *   -m N            messages to publish in all (0: connect only) -r RATE   messages a second in all (0: as fast as it goes)
 *   -b BYTES        payload size, 8 at least (default 64)        -q QOS    0 or 1, for publishing and subscribing
 *   -i N            QoS 1: unacknowledged messages allowed a publisher (default 20)
 *   -w N            connections being set up at once (default 50)
 *   -R              resume: connect, close, connect again with the saved TLS session; the second round is what is reported
 *   -5              MQTT 5.0 instead of 3.1.1                    -T        plain TCP instead of TLS
 *   -H SECONDS      stay connected that long (to read the broker's memory)
 *   -A SECONDS      keep alive; with -H each client sends a PINGREQ so often, one client after the other (default 600, none)
 *   -W N            messages sent and not yet delivered, at most, where no rate is given (default 200000)
 *   -B N            messages that a publisher puts into one write, where no rate is given (default 1)
 *   -S              step: after each phase stay connected until a line arrives on standard input, so that whoever started
 *                   this can read the broker's CPU time and memory exactly between two phases; end of input ends it at once;
 *                   a line that arrives while messages are sent ends that phase early
 *   -L              print {"phase":"lost",...} for each connection that the broker closes: when (CLOCK_MONOTONIC, as Python's
 *                   time.monotonic() reads it), and the reason code of its DISCONNECT (MQTT 5) or -1; the socket and its TLS
 *                   are freed when no other was closed for 50 ms: a device frees its own on its own machine
 *   -E              subscribers have a persistent session (3.1.1: clean session 0)
 *   -P              so have publishers
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum state { TCP, HANDSHAKE, CONNACK, SUBACK, UP, DEAD };

struct client {
    int fd, is_subscriber, want_write, inflight, packet_id, disconnect_reason;
    enum state state;
    char id[128];
    SSL *ssl;
    SSL_CTX *ctx;
    SSL_SESSION *session;
    unsigned char *in, *out;
    int in_len, in_cap, out_len, out_cap;
    double started;
};

static int port = 8883, publishers = 1, subscribers, qos, window = 20, concurrency = 50, payload = 64, hold,
           version = 4;
static int persistent, all_persistent, resume, plain, stepping, tell_lost, keep_alive;
static long messages, undelivered = 200000;
static int burst = 1;
static double rate;
static const char *ca, *dir, *crt, *key, *sub_crt, *sub_key, *sub_id = "sub", *topic = "d/%s/t", *filter = "d/#";
static int ep, total;
static SSL_CTX *shared_ctx, *sub_ctx;
static struct client *clients;
static long up, refused, lost, reused, sent, received, acknowledged, samples, max_samples = 10000000;
static double *latency, *setup;
static int setups;
static struct client **ended; /* closed by the broker, not freed yet */
static int ends;
static double last_end;
static char negotiated[200]; /* what the first handshake of a phase agreed on: both peers must do the same work */

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static int by_value(const void *a, const void *b) {
    double x = *(double *)a, y = *(double *)b;
    return x < y ? -1 : x > y;
}

static double pick(double *v, long n, double q) {
    return n ? v[(long)((n - 1) * q)] * 1e3 : 0;
}

static int on_session(SSL *ssl, SSL_SESSION *session) {
    struct client *c = SSL_get_app_data(ssl);
    if (!resume) return 0;
    if (c->session) SSL_SESSION_free(c->session);
    c->session = session;
    return 1;
}

static SSL_CTX *make_ctx(const char *certificate, const char *private_key) {
    SSL_CTX *x = SSL_CTX_new(TLS_client_method());
    SSL_CTX_set_mode(x, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER | SSL_MODE_RELEASE_BUFFERS);
    if (ca && SSL_CTX_load_verify_locations(x, ca, NULL) != 1) {
        fprintf(stderr, "mqload: cannot read CA %s\n", ca);
        exit(2);
    }
    SSL_CTX_set_verify(x, SSL_VERIFY_PEER, NULL);
    if (certificate && (SSL_CTX_use_certificate_chain_file(x, certificate) != 1 ||
                        SSL_CTX_use_PrivateKey_file(x, private_key, SSL_FILETYPE_PEM) != 1)) {
        fprintf(stderr, "mqload: cannot use %s with %s\n", certificate, private_key);
        exit(2);
    }
    SSL_CTX_set_session_cache_mode(x, SSL_SESS_CACHE_CLIENT | SSL_SESS_CACHE_NO_INTERNAL);
    SSL_CTX_sess_set_new_cb(x, on_session);
    return x;
}

static void watch(struct client *c, int want_write) {
    if (c->want_write == want_write) return;
    c->want_write = want_write;
    struct epoll_event e = {.events = EPOLLIN | (want_write ? EPOLLOUT : 0), .data.ptr = c};
    epoll_ctl(ep, EPOLL_CTL_MOD, c->fd, &e);
}

static void release(struct client *c, int politely) {
    if (c->ssl) {
        if (politely) SSL_shutdown(c->ssl);
        SSL_free(c->ssl);
        c->ssl = NULL;
    }
    ERR_clear_error(); /* what ended this connection must not be taken for the next one's error */
    close(c->fd);
    c->in_len = c->out_len = 0;
}

static void drop(struct client *c, int politely) {
    int later = 0;
    if (c->state == DEAD) return;
    if (c->state == UP) {
        up--;
        if (!politely) {
            lost++;
            if (tell_lost) {
                last_end = now();
                printf("{\"phase\":\"lost\",\"id\":\"%s\",\"at\":%.6f,\"reason\":%d}\n", c->id, last_end,
                       c->disconnect_reason);
                ended[ends++] = c;
                later = 1;
            }
        }
    } else
        refused++;
    c->state = DEAD;
    epoll_ctl(ep, EPOLL_CTL_DEL, c->fd, NULL);
    if (!later) release(c, politely);
}

static void release_ended(void) {
    if (!ends || now() - last_end < .05) return;
    while (ends) release(ended[--ends], 0);
}

static void flush_out(struct client *c) {
    while (c->out_len > 0) {
        int n = plain ? (int)write(c->fd, c->out, c->out_len) : SSL_write(c->ssl, c->out, c->out_len);
        if (n <= 0) {
            int e = plain ? (errno == EAGAIN ? SSL_ERROR_WANT_WRITE : SSL_ERROR_SSL) : SSL_get_error(c->ssl, n);
            if (e == SSL_ERROR_WANT_WRITE || e == SSL_ERROR_WANT_READ) {
                watch(c, 1);
                return;
            }
            drop(c, 0);
            return;
        }
        memmove(c->out, c->out + n, c->out_len - n);
        c->out_len -= n;
    }
    watch(c, 0);
}

static void put(struct client *c, const void *bytes, int n) {
    if (c->out_len + n > c->out_cap) {
        c->out_cap = (c->out_len + n) * 2;
        c->out = realloc(c->out, c->out_cap);
    }
    memcpy(c->out + c->out_len, bytes, n);
    c->out_len += n;
}

static int put_length(unsigned char *p, int v) {
    int n = 0;
    do {
        p[n] = v & 127;
        v >>= 7;
        if (v) p[n] |= 128;
        n++;
    } while (v);
    return n;
}

static int put_text(unsigned char *p, const char *s) {
    int l = strlen(s);
    p[0] = l >> 8;
    p[1] = l;
    memcpy(p + 2, s, l);
    return l + 2;
}

static void send_connect(struct client *c) {
    unsigned char b[512];
    int v5 = version == 5, n = 0, rest = 10 + v5 + 2 + strlen(c->id);
    b[n++] = 0x10;
    n += put_length(b + n, rest);
    n += put_text(b + n, "MQTT");
    b[n++] = version;
    b[n++] = (c->is_subscriber ? persistent : all_persistent) ? 0 : 2; /* clean session, or one that is kept */
    int seconds = keep_alive ? keep_alive : 600; /* Longer than any run, where no PINGREQ is ever sent. */
    b[n++] = seconds >> 8;
    b[n++] = seconds & 255;
    if (v5) b[n++] = 0;
    n += put_text(b + n, c->id);
    put(c, b, n);
    flush_out(c);
}

static void send_subscribe(struct client *c) {
    unsigned char b[512];
    int v5 = version == 5, n = 0, rest = 2 + v5 + 2 + strlen(filter) + 1;
    b[n++] = 0x82;
    n += put_length(b + n, rest);
    b[n++] = 0;
    b[n++] = 1;
    if (v5) b[n++] = 0;
    n += put_text(b + n, filter);
    b[n++] = qos;
    put(c, b, n);
    flush_out(c);
}

static void send_publish(struct client *c) {
    static unsigned char b[300000];
    char name[256];
    int v5 = version == 5, n = 0;
    snprintf(name, sizeof name, topic, c->id);
    b[n++] = 0x30 | qos << 1;
    n += put_length(b + n, 2 + strlen(name) + (qos ? 2 : 0) + v5 + payload);
    n += put_text(b + n, name);
    if (qos) {
        c->packet_id = c->packet_id % 65535 + 1;
        b[n++] = c->packet_id >> 8;
        b[n++] = c->packet_id;
        c->inflight++;
    }
    if (v5) b[n++] = 0;
    double t = now();
    memcpy(b + n, &t, 8);
    memset(b + n + 8, 'x', payload - 8);
    put(c, b, n + payload);
    sent++;
}

static void established(struct client *c) {
    c->state = UP;
    up++;
    if (setups < total) setup[setups++] = now() - c->started;
}

static void on_packet(struct client *c, unsigned char first, unsigned char *p, int length) {
    switch (first >> 4) {
    case 2:
        if (p[1]) {
            drop(c, 0);
            return;
        }
        if (c->is_subscriber) {
            c->state = SUBACK;
            send_subscribe(c);
        } else
            established(c);
        break;
    case 3: {
        unsigned char *q = p + 2 + (p[0] << 8 | p[1]);
        if (first >> 1 & 3) {
            unsigned char ack[4] = {0x40, 2, q[0], q[1]};
            put(c, ack, 4);
            q += 2;
        }
        if (version == 5) q += 1 + q[0];
        double t;
        memcpy(&t, q, 8);
        received++;
        if (samples < max_samples) latency[samples++] = now() - t;
        break;
    }
    case 4:
        c->inflight--;
        acknowledged++;
        break;
    case 9:
        if (p[length - 1] & 0x80) {
            fprintf(stderr, "mqload: subscription refused (0x%02x)\n", p[length - 1]);
            drop(c, 0);
            return;
        }
        established(c);
        break;
    case 14: /* the connection is lost when it is closed, not when that is announced */
        c->disconnect_reason = length ? p[0] : 0;
        break;
    }
}

static void on_readable(struct client *c) {
    for (;;) {
        if (c->in_cap - c->in_len < 16384) {
            c->in_cap = c->in_len + 65536;
            c->in = realloc(c->in, c->in_cap);
        }
        int n = plain ? (int)read(c->fd, c->in + c->in_len, c->in_cap - c->in_len)
                      : SSL_read(c->ssl, c->in + c->in_len, c->in_cap - c->in_len);
        if (n <= 0) {
            int e = plain ? (n < 0 && errno == EAGAIN ? SSL_ERROR_WANT_READ : SSL_ERROR_SSL) : SSL_get_error(c->ssl, n);
            if (e != SSL_ERROR_WANT_READ && e != SSL_ERROR_WANT_WRITE) {
                drop(c, 0);
                return;
            }
            break;
        }
        c->in_len += n;
        int pos = 0;
        while (c->in_len - pos >= 2) {
            int shift = 0, length = 0, i = 1, complete = 0;
            while (pos + i < c->in_len) {
                unsigned char b = c->in[pos + i++];
                length |= (b & 127) << shift;
                shift += 7;
                if (!(b & 128)) {
                    complete = 1;
                    break;
                }
            }
            if (!complete || pos + i + length > c->in_len) break;
            on_packet(c, c->in[pos], c->in + pos + i, length);
            if (c->state == DEAD) return;
            pos += i + length;
        }
        memmove(c->in, c->in + pos, c->in_len - pos);
        c->in_len -= pos;
        if (c->out_len) {
            flush_out(c);
            if (c->state == DEAD) return;
        }
    }
    if (!c->in_len && c->in_cap) {
        free(c->in);
        c->in = NULL;
        c->in_cap = 0;
    }
}

static void describe(SSL *ssl) {
    const char *group = "-";
#if OPENSSL_VERSION_NUMBER >= 0x30200000L
    if (SSL_get0_group_name(ssl)) group = SSL_get0_group_name(ssl);
#endif
    snprintf(negotiated, sizeof negotiated, "%s %s %s", SSL_get_version(ssl),
             SSL_CIPHER_get_name(SSL_get_current_cipher(ssl)), group);
}

static void handshake(struct client *c) {
    int r = SSL_do_handshake(c->ssl);
    if (r == 1) {
        reused += SSL_session_reused(c->ssl);
        if (!negotiated[0]) describe(c->ssl);
        c->state = CONNACK;
        send_connect(c);
        return;
    }
    int e = SSL_get_error(c->ssl, r);
    if (e == SSL_ERROR_WANT_READ)
        watch(c, 0);
    else if (e == SSL_ERROR_WANT_WRITE)
        watch(c, 1);
    else
        drop(c, 0);
}

static void open_client(struct client *c, int index) {
    int one = 1;
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)}, from = {.sin_family = AF_INET};
    c->started = now();
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    c->state = TCP;
    c->want_write = 1;
    c->inflight = 0;
    c->disconnect_reason = -1;
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    /* Loopback has no congestion; a machine's default with pacing (bbr) costs the sender a timer a write. */
    setsockopt(c->fd, IPPROTO_TCP, TCP_CONGESTION, "reno", 4);
    setsockopt(c->fd, IPPROTO_IP, 24 /* IP_BIND_ADDRESS_NO_PORT */, &one, sizeof one);
    from.sin_addr.s_addr = htonl(0x7f000002 + index / 20000);
    bind(c->fd, (void *)&from, sizeof from);
    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connect(c->fd, (void *)&to, sizeof to);
    struct epoll_event e = {.events = EPOLLIN | EPOLLOUT, .data.ptr = c};
    epoll_ctl(ep, EPOLL_CTL_ADD, c->fd, &e);
}

static void connected(struct client *c) {
    if (plain) {
        c->state = CONNACK;
        send_connect(c);
        return;
    }
    char a[600], b[600];
    SSL_CTX *x = c->ctx;
    c->ssl = SSL_new(x);
    SSL_set_app_data(c->ssl, c);
    if (dir && !c->is_subscriber) {
        snprintf(a, sizeof a, "%s/%s.crt", dir, c->id);
        snprintf(b, sizeof b, "%s/%s.key", dir, c->id);
        if (SSL_use_certificate_chain_file(c->ssl, a) != 1 ||
            SSL_use_PrivateKey_file(c->ssl, b, SSL_FILETYPE_PEM) != 1) {
            fprintf(stderr, "mqload: cannot use %s\n", a);
            exit(2);
        }
    }
    if (c->session) SSL_set_session(c->ssl, c->session);
    SSL_set_fd(c->ssl, c->fd);
    SSL_set_connect_state(c->ssl);
    c->state = HANDSHAKE;
    handshake(c);
}

static void pump(int milliseconds) {
    static struct epoll_event events[1024];
    int n = epoll_wait(ep, events, 1024, milliseconds);
    for (int i = 0; i < n; i++) {
        struct client *c = events[i].data.ptr;
        if (c->state == DEAD) continue;
        if (c->state == TCP) {
            if (events[i].events & (EPOLLERR | EPOLLHUP))
                drop(c, 0);
            else
                connected(c);
            continue;
        }
        if (c->state == HANDSHAKE) {
            handshake(c);
            continue;
        }
        if (events[i].events & EPOLLOUT) {
            flush_out(c);
            if (c->state == DEAD) continue;
        }
        if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) on_readable(c);
    }
    if (tell_lost) fflush(stdout);
}

static void step(void) {
    struct pollfd input = {.fd = 0, .events = POLLIN};
    for (char byte = 0; stepping && byte != '\n';) {
        pump(10);
        release_ended();
        if (poll(&input, 1, 0) > 0 && read(0, &byte, 1) != 1) exit(1);
    }
}

static void connect_all(const char *phase) {
    double t = now();
    int started = 0;
    last_end = 0;
    release_ended(); /* they connect again */
    up = refused = reused = 0;
    setups = 0;
    negotiated[0] = 0;
    for (int i = 0; i < total; i++) {
        while (started - up - refused >= concurrency && now() - t < 300)
            pump(100);
        open_client(&clients[i], i);
        started++;
        pump(0);
    }
    double stalled = now() + 30;
    long before = -1;
    while (up + refused < total && now() < stalled) {
        if (up + refused != before) {
            before = up + refused;
            stalled = now() + 30;
        }
        pump(100);
    }
    double d = now() - t;
    qsort(setup, setups, sizeof *setup, by_value);
    printf("{\"phase\":\"%s\",\"wanted\":%d,\"up\":%ld,\"refused\":%ld,\"resumed\":%ld,\"seconds\":%.3f,"
           "\"per_second\":%.0f,\"setup_ms_p50\":%.2f,\"setup_ms_p99\":%.2f,\"tls\":\"%s\"}\n",
           phase, total, up, refused, reused, d, up / d, pick(setup, setups, .5), pick(setup, setups, .99), negotiated);
    fflush(stdout);
    step();
}

/* Whether a line has arrived on standard input (-S): whoever started this wants no more messages. */
static int told_to_stop(void) {
    struct pollfd input = {.fd = 0, .events = POLLIN};
    char byte = 0;
    if (!stepping || poll(&input, 1, 0) <= 0) return 0;
    while (byte != '\n')
        if (read(0, &byte, 1) != 1) exit(1);
    return 1;
}

static int only_crt(const struct dirent *d) {
    size_t l = strlen(d->d_name);
    return l > 4 && !strcmp(d->d_name + l - 4, ".crt");
}

int main(int argc, char **argv) {
    for (int o; (o = getopt(argc, argv, "p:a:D:n:c:k:s:C:K:I:t:f:m:r:b:q:i:w:R5TH:A:W:B:SLEP")) > 0;)
        switch (o) {
        case 'p': port = atoi(optarg); break;
        case 'a': ca = optarg; break;
        case 'D': dir = optarg; break;
        case 'n': publishers = atoi(optarg); break;
        case 'c': crt = optarg; break;
        case 'k': key = optarg; break;
        case 's': subscribers = atoi(optarg); break;
        case 'C': sub_crt = optarg; break;
        case 'K': sub_key = optarg; break;
        case 'I': sub_id = optarg; break;
        case 't': topic = optarg; break;
        case 'f': filter = optarg; break;
        case 'm': messages = atol(optarg); break;
        case 'r': rate = atof(optarg); break;
        case 'b': payload = atoi(optarg); break;
        case 'q': qos = atoi(optarg); break;
        case 'i': window = atoi(optarg); break;
        case 'w': concurrency = atoi(optarg); break;
        case 'R': resume = 1; break;
        case '5': version = 5; break;
        case 'T': plain = 1; break;
        case 'H': hold = atoi(optarg); break;
        case 'A': keep_alive = atoi(optarg); break;
        case 'W': undelivered = atol(optarg); break;
        case 'B': burst = atoi(optarg); break;
        case 'S': stepping = 1; break;
        case 'L': tell_lost = 1; break;
        case 'E': persistent = 1; break;
        case 'P': all_persistent = 1; break;
        default: fprintf(stderr, "mqload: see the head of mqload.c\n"); return 2;
        }
    if (payload < 8) payload = 8;
    if (payload > 262144 || strlen(topic) > 100 || strlen(filter) > 400) {
        fprintf(stderr, "mqload: payload, topic or filter too long\n");
        return 2;
    }
    total = publishers + subscribers;
    ep = epoll_create1(0);
    clients = calloc(total, sizeof *clients);
    ended = calloc(total, sizeof *ended);
    setup = calloc(total, sizeof *setup);
    latency = malloc(max_samples * sizeof *latency);
    if (!plain) {
        shared_ctx = make_ctx(dir ? NULL : crt, key);
        sub_ctx = sub_crt ? make_ctx(sub_crt, sub_key) : shared_ctx;
    }
    struct dirent **names = NULL;
    int found = dir ? scandir(dir, &names, only_crt, alphasort) : 0;
    if (dir && found < publishers) {
        fprintf(stderr, "mqload: %d credentials in %s, %d wanted\n", found, dir, publishers);
        return 2;
    }
    for (int i = 0; i < total; i++) {
        struct client *c = &clients[i];
        c->is_subscriber = i < subscribers;
        c->ctx = c->is_subscriber ? sub_ctx : shared_ctx;
        if (c->is_subscriber) {
            if (subscribers > 1)
                snprintf(c->id, sizeof c->id, "%s-%d", sub_id, i);
            else
                snprintf(c->id, sizeof c->id, "%s", sub_id);
        } else if (dir)
            snprintf(c->id, sizeof c->id, "%.*s", (int)strlen(names[i - subscribers]->d_name) - 4,
                     names[i - subscribers]->d_name);
        else
            snprintf(c->id, sizeof c->id, "c%d", i);
    }
    connect_all("connect");
    if (resume) {
        double e = now() + .5;
        while (now() < e)
            pump(50); /* the session tickets arrive */
        for (int i = 0; i < total; i++)
            drop(&clients[i], 1);
        e = now() + .5;
        while (now() < e)
            pump(50);
        if (stepping) {
            printf("{\"phase\":\"closed\",\"lost\":%ld}\n", lost);
            fflush(stdout);
            step();
        }
        lost = 0;
        connect_all("resume");
    }
    if (hold) {
        double t = now();
        long pings = 0;
        while (now() < t + hold) {
            while (keep_alive && pings < (now() - t) * total / keep_alive) {
                struct client *c = &clients[pings++ % total];
                if (c->state != UP) continue;
                put(c, (unsigned char *)"\xC0", 2); /* PINGREQ */
                flush_out(c);
            }
            pump(keep_alive ? 1 : 100);
        }
        printf("{\"phase\":\"hold\",\"up\":%ld,\"lost\":%ld,\"pings\":%ld}\n", up, lost, pings);
        fflush(stdout);
        step();
    }
    if (messages) {
        double t = now();
        int turn = 0;
        long fan = subscribers ? subscribers : 0;
        while (sent < messages && up > subscribers && now() - t < 120 && !told_to_stop()) {
            long allowed = rate ? (long)((now() - t) * rate) - sent : 1 << 30;
            int did = 0, looked = 0;
            while (allowed > 0 && sent < messages && did < 256 && looked < publishers) {
                struct client *c = &clients[subscribers + turn];
                turn = (turn + 1) % publishers;
                looked++;
                if (c->state != UP || c->out_len > 65536 || (qos && c->inflight >= window)) continue;
                for (int n = 0; n < burst && allowed > 0 && sent < messages && !(qos && c->inflight >= window); n++) {
                    send_publish(c);
                    did++;
                    allowed--;
                }
                flush_out(c);
                looked = 0;
            }
            if (!rate && fan && sent - received / fan >= undelivered)
                pump(1);
            else
                pump(did ? 0 : 1);
        }
        long expected = sent * fan;
        double stalled = now() + 10;
        while ((received < expected || (qos && acknowledged < sent)) && now() < stalled) {
            long r = received + acknowledged;
            pump(100);
            if (received + acknowledged > r) stalled = now() + 10;
        }
        double d = now() - t;
        qsort(latency, samples, sizeof *latency, by_value);
        printf("{\"phase\":\"messages\",\"sent\":%ld,\"received\":%ld,\"expected\":%ld,\"acknowledged\":%ld,"
               "\"seconds\":%.3f,\"published_per_second\":%.0f,\"delivered_per_second\":%.0f,\"latency_ms_p50\":%.3f,"
               "\"latency_ms_p99\":%.3f,\"latency_ms_max\":%.3f,\"lost_connections\":%ld}\n",
               sent, received, expected, acknowledged, d, sent / d, received / d, pick(latency, samples, .5),
               pick(latency, samples, .99), pick(latency, samples, 1), lost);
        fflush(stdout);
        step();
    }
    return refused || lost ? 1 : 0;
}
