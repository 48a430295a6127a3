// mqtt-packet, the codec of MQTT.js and aedes, as a judge: reads [[version, hex], …] as JSON from standard input, and
// writes for each packet what it makes of it, encoded again in hex, or {"error": …}.
'use strict'
const mqtt = require('mqtt-packet')

function again ([version, hex]) {
  const options = { protocolVersion: version }
  const parser = mqtt.parser(options)
  const packets = []
  let error
  parser.on('packet', packet => packets.push(packet))
  parser.on('error', found => { error = found.message })
  const left = parser.parse(Buffer.from(hex, 'hex'))
  if (error === undefined && (packets.length !== 1 || left !== 0)) error = `${packets.length} packets, ${left} bytes left`
  if (error !== undefined) return { error }
  try {
    return mqtt.generate(packets[0], options).toString('hex')
  } catch (thrown) {
    return { error: `generate: ${thrown.message}` }
  }
}

let input = ''
process.stdin.on('data', chunk => { input += chunk })
process.stdin.on('end', () => process.stdout.write(JSON.stringify(JSON.parse(input).map(again))))
