// The aedes broker with mutual TLS and the rights of the benchmarks; started by benchmarks/scripted_peers.py.
//
//     node broker.js PORT CAFILE CERT KEY GROUP BACKEND
//
// A client is who its certificate names, and named so in its CONNECT. A device publishes below its own topic, the
// backend reads everything. It prints "aedes ready" when it listens.
'use strict'
const fs = require('fs')
const tls = require('tls')
const { Aedes } = require('aedes')

const [port, ca, cert, key, group, backend] = process.argv.slice(2)

function refuse (callback, text) {
  callback(Object.assign(new Error(text), { returnCode: 5 }), false)
}

async function main () {
  const aedes = await Aedes.createBroker({ concurrency: 10000, queueLimit: 100000 })
  aedes.authenticate = (client, username, password, callback) => {
    const name = client.conn.getPeerCertificate().subject.CN
    if (client.id === name || (name === backend && client.id.startsWith(`${name}-`))) {
      client.own = name === backend ? null : `fleet/${group}/${name}/`
      callback(null, true)
    } else refuse(callback, 'not the certificate\'s name')
  }
  aedes.authorizePublish = (client, packet, callback) => {
    const may = client !== null && client.own !== null && packet.topic.startsWith(client.own)
    callback(may ? null : new Error('not permitted'))
  }
  aedes.authorizeSubscribe = (client, subscription, callback) => {
    const may = client.own === null && subscription.topic.startsWith('fleet/')
    callback(null, may ? subscription : null)
  }
  const options = {
    ca: fs.readFileSync(ca),
    cert: fs.readFileSync(cert),
    key: fs.readFileSync(key),
    requestCert: true,
    rejectUnauthorized: true,
    minVersion: 'TLSv1.3',
    noDelay: true
  }
  const server = tls.createServer(options, aedes.handle)
  server.on('tlsClientError', () => {})
  server.listen({ port: Number(port), host: '127.0.0.1', backlog: 1024 }, () => process.stdout.write('aedes ready\n'))
}

main()
