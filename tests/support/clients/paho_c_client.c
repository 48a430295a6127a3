/* Eclipse Paho's C client as a driver: see tests/support/real_clients.py for the arguments and the lines it prints. */
#include <MQTTClient.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void lost(void *context, char *cause) {
    (void)context, (void)cause;
    puts("closed");
    fflush(stdout);
    _exit(3);
}

static int arrived(void *context, char *topic, int length, MQTTClient_message *message) {
    (void)context, (void)length;
    printf("message %d %d %s %.*s\n", message->retained, message->qos, topic, message->payloadlen, (char *)message->payload);
    fflush(stdout);
    MQTTClient_freeMessage(&message);
    MQTTClient_free(topic);
    return 1;
}

static void refused(int code) {
    printf("refused %d\n", code);
    fflush(stdout);
    _exit(2);
}

int main(int count, char **words) {
    if (count < 11) return 1;
    const char *mode = words[1], *topic = words[9], *payload = count > 11 ? words[11] : "";
    int newest = strcmp(words[8], "5") == 0, qos = atoi(words[10]);
    char uri[128];
    snprintf(uri, sizeof uri, "ssl://%s:%s", words[2], words[3]);
    MQTTClient client;
    MQTTClient_createOptions create = MQTTClient_createOptions_initializer;
    create.MQTTVersion = newest ? MQTTVERSION_5 : MQTTVERSION_3_1_1;
    if (MQTTClient_createWithOptions(&client, uri, words[7], MQTTCLIENT_PERSISTENCE_NONE, NULL, &create)) return 1;
    MQTTClient_setCallbacks(client, NULL, lost, arrived, NULL);
    MQTTClient_SSLOptions tls = MQTTClient_SSLOptions_initializer;
    tls.struct_version = 5;
    tls.trustStore = words[4];
    tls.enableServerCertAuth = 1;
    tls.verify = 1;
    if (strcmp(words[5], "-")) tls.keyStore = words[5], tls.privateKey = words[6];
    MQTTClient_willOptions will = MQTTClient_willOptions_initializer;
    will.topicName = topic, will.message = payload, will.qos = qos;
    MQTTClient_connectOptions older = MQTTClient_connectOptions_initializer;
    MQTTClient_connectOptions five = MQTTClient_connectOptions_initializer5;
    MQTTClient_connectOptions *options = newest ? &five : &older;
    options->ssl = &tls;
    options->keepAliveInterval = 20;
    options->connectTimeout = 20;
    if (!strcmp(mode, "will")) options->will = &will;
    int code;
    if (newest) {
        MQTTResponse response = MQTTClient_connect5(client, options, NULL, NULL);
        code = response.reasonCode;
        MQTTResponse_free(response);
    } else {
        options->MQTTVersion = MQTTVERSION_3_1_1;
        code = MQTTClient_connect(client, options);
    }
    if (code) refused(code);
    if (!strcmp(mode, "sub")) {
        if (newest) {
            MQTTResponse response = MQTTClient_subscribe5(client, topic, qos, NULL, NULL);
            code = response.reasonCode;
            MQTTResponse_free(response);
            if (code < 0 || code > 2) refused(code);
        } else if ((code = MQTTClient_subscribe(client, topic, qos))) {
            refused(code);
        }
    }
    if (!strcmp(mode, "pub") || !strcmp(mode, "retain")) {
        MQTTClient_message message = MQTTClient_message_initializer;
        message.payload = (void *)payload, message.payloadlen = (int)strlen(payload);
        message.qos = qos, message.retained = !strcmp(mode, "retain");
        MQTTClient_deliveryToken token;
        if (newest) {
            MQTTResponse response = MQTTClient_publishMessage5(client, topic, &message, &token);
            code = response.reasonCode;
            MQTTResponse_free(response);
        } else {
            code = MQTTClient_publishMessage(client, topic, &message, &token);
        }
        if (code || MQTTClient_waitForCompletion(client, token, 20000)) return 1;
        if (newest) MQTTClient_disconnect5(client, 1000, MQTTREASONCODE_SUCCESS, NULL);
        else MQTTClient_disconnect(client, 1000);
        puts("done");
        return 0;
    }
    puts("ready");
    fflush(stdout);
    for (;;) pause();
}
