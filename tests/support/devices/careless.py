"""A bad device: it trusts every server, and reconnects without pause. For `fleet-sim qualify`.

Arguments: host port cert key client_id topic
"""

from __future__ import annotations

import ssl
import sys

from paho.mqtt import client as mqtt
from paho.mqtt.enums import CallbackAPIVersion

host, port, cert, key, name, topic = sys.argv[1:]
while True:
    client = mqtt.Client(CallbackAPIVersion.VERSION2, client_id=name)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.load_cert_chain(cert, key)
    client.tls_set_context(context)
    client.on_connect = lambda c, _u, _f, _r, _p: c.publish(topic, "once", qos=1)
    try:
        client.connect(host, int(port), keepalive=0)
        while client.loop(0.05) == mqtt.MQTT_ERR_SUCCESS:
            pass
    except OSError:
        pass
