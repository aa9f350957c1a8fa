// A client built of the AWS IoT device SDK v2, for MQTT 3.1.1 and 5, as the
// tests command it. Its argument is JSON: {host, port, ca, cert, key, clientId,
// version: "3.1.1" | "5"}.
'use strict';

const { iot, iotidentity, iotjobs, iotshadow, mqtt, mqtt5 } = require('aws-iot-device-sdk-v2');
const { once } = require('node:events');
const { say, serve } = require('./lines');

const to = JSON.parse(process.argv[2]);
const limits = { maxRequestResponseSubscriptions: 6, maxStreamingSubscriptions: 4, operationTimeoutInSeconds: 20 };

async function connect3() {
  const builder = iot.AwsIotMqttConnectionConfigBuilder.new_mtls_builder_from_path(to.cert, to.key);
  builder.with_certificate_authority_from_path(undefined, to.ca);
  builder.with_endpoint(to.host);
  builder.with_port(to.port);
  builder.with_client_id(to.clientId);
  builder.with_clean_session(true);
  const line = new mqtt.MqttClient().new_connection(builder.build());
  line.on('interrupt', (err) => say({ event: 'interrupt', error: String(err) }));
  line.on('resume', () => say({ event: 'resume' }));
  await line.connect();
  return {
    line,
    groups: {
      shadow: iotshadow.IotShadowClientv2.newFromMqtt311(line, limits),
      jobs: iotjobs.IotJobsClientv2.newFromMqtt311(line, limits),
      identity: iotidentity.IotIdentityClientv2.newFromMqtt311(line, limits),
      // the older clients: a subscription for each answer, and a publish
      shadow1: new iotshadow.IotShadowClient(line),
      jobs1: new iotjobs.IotJobsClient(line),
    },
    close: () => line.disconnect(),
  };
}

async function connect5() {
  const builder = iot.AwsIotMqtt5ClientConfigBuilder.newDirectMqttBuilderWithMtlsFromPath(to.host, to.cert, to.key);
  builder.withCertificateAuthorityFromPath(undefined, to.ca);
  builder.withPort(to.port);
  builder.withConnectProperties({ clientId: to.clientId, keepAliveIntervalSeconds: 60 });
  const line = new mqtt5.Mqtt5Client(builder.build());
  line.on('error', (err) => say({ event: 'error', error: String(err) }));
  line.on('connectionFailure', (e) => say({ event: 'refused', error: String(e.error), reason: e.connack?.reasonCode }));
  line.on('disconnection', (e) => say({ event: 'interrupt', error: String(e.error), reason: e.disconnect?.reasonCode }));
  const connected = once(line, 'connectionSuccess');
  line.start();
  const [{ connack, settings }] = await connected;
  say({ event: 'connack', reason: connack.reasonCode, settings });
  return {
    line,
    groups: {
      shadow: iotshadow.IotShadowClientv2.newFromMqtt5(line, limits),
      jobs: iotjobs.IotJobsClientv2.newFromMqtt5(line, limits),
      identity: iotidentity.IotIdentityClientv2.newFromMqtt5(line, limits),
      shadow1: iotshadow.IotShadowClient.newFromMqtt5Client(line),
      jobs1: iotjobs.IotJobsClient.newFromMqtt5Client(line),
    },
    close: async () => {
      const stopped = once(line, 'stopped');
      line.stop();
      await stopped;
      line.close();
    },
  };
}

async function main() {
  const { groups, close } = to.version === '5' ? await connect5() : await connect3();
  const streams = [];
  say({ event: 'connected' });
  await serve({
    // call: one request, its answer is the result
    call: ({ group, method, args }) => groups[group][method](args),
    // stream: what comes is an event with the name
    stream: async ({ group, method, args, name }) => {
      const stream = groups[group][method](args);
      stream.addListener('incomingPublish', (e) => say({ event: name, body: e.message }));
      const status = once(stream, 'subscriptionStatus');
      stream.open();
      streams.push(stream);
      const [{ type, error }] = await status;
      if (error) throw error;
      return type;
    },
    // listen, send: of the older clients, at QoS 1
    listen: async ({ group, method, args, name }) => {
      const granted = await groups[group][method](args, mqtt.QoS.AtLeastOnce, (error, body) => say({ event: name, body, error: error && String(error) }));
      if (granted.error_code) throw new Error(`subscription refused: ${granted.error_code}`);
      return granted.qos;
    },
    send: async ({ group, method, args }) => {
      await groups[group][method](args, mqtt.QoS.AtLeastOnce);
    },
  }, async () => {
    streams.forEach((s) => s.close());
    ['shadow', 'jobs', 'identity'].forEach((g) => groups[g].close());
    await close();
  });
}

main().catch((err) => {
  say({ event: 'failed', error: String(err) });
  process.exitCode = 1;
});
