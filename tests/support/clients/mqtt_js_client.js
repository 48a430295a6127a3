// MQTT.js as a driver: see tests/support/real_clients.py for the arguments and the lines it prints.
const mqtt = require('mqtt')
const fs = require('fs')
const [mode, host, port, ca, cert, key, clientId, version, topic, qos, payload] = process.argv.slice(2)
const end = (text, code) => { console.log(text); process.exit(code) }
const options = {
  host, port: Number(port), protocol: 'mqtts', clientId, protocolVersion: version === '5' ? 5 : 4, reconnectPeriod: 0,
  ca: fs.readFileSync(ca), rejectUnauthorized: true, connectTimeout: 20000, keepalive: 20
}
if (cert !== '-') Object.assign(options, { cert: fs.readFileSync(cert), key: fs.readFileSync(key) })
if (mode === 'will') options.will = { topic, payload, qos: Number(qos) }
const client = mqtt.connect(options)
let admitted = false
client.on('error', (error) => { if (!admitted) end(`refused ${error.code || error.message}`, 2) })
client.on('close', () => end(admitted ? 'closed' : 'refused closed', admitted ? 3 : 2))
client.on('message', (name, message, packet) =>
  console.log(`message ${Number(packet.retain)} ${packet.qos} ${name} ${message}`))
client.on('connect', () => {
  admitted = true
  if (mode === 'sub') {
    client.subscribe(topic, { qos: Number(qos) }, (error, granted) =>
      error || granted[0].qos > 2 ? end('refused subscription', 2) : console.log('ready'))
  } else if (mode === 'will') {
    console.log('ready')
  } else {
    client.publish(topic, payload, { qos: Number(qos), retain: mode === 'retain' }, (error) => {
      if (error) end(`failed ${error.message}`, 1)
      client.removeAllListeners('close')
      client.end(false, {}, () => end('done', 0))
    })
  }
})
