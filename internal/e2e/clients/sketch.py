"""What an ESP32 sketch says to its broker, in paho: MQTT 3.1.1, clean session,
QoS 0, user name and password over TLS, topics of its own, a will. Arguments:
host, port, device, CA file; the password is in SECRET."""

import os
import ssl
import sys

import paho.mqtt.client as mqtt

host, port, device, ca = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
topics = f"sensors/{device}/"


def on_connect(client, userdata, flags, code):
    print("connect", code, flush=True)
    if code == 0:
        client.publish(topics + "status", "online")
        client.subscribe(topics + "command")
        client.publish(topics + "temperature", "21.5")


def on_message(client, userdata, message):
    print("command", message.payload.decode(), flush=True)
    client.publish(topics + "led", message.payload)


client = mqtt.Client(client_id=device, clean_session=True, protocol=mqtt.MQTTv311)
client.username_pw_set(device, os.environ["SECRET"])
client.tls_set(ca, tls_version=ssl.PROTOCOL_TLS_CLIENT)
client.will_set(topics + "status", "offline")
client.on_connect, client.on_message = on_connect, on_message
client.connect(host, port)
client.loop_forever()
