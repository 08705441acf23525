// A js-libp2p peer for tests/interop/test_js_libp2p.py: Noise, Yamux, identify, ping, and an echo.
//
//   node js_peer.mjs dial MULTIADDR     dial, look, send 5 MiB through the echo, ping; print what was seen as JSON
//   node js_peer.mjs listen             print the address, echo until the standard input ends
//
// It is copied beside the packages: an import looks for them there.
Promise.withResolvers ??= function () {  // of Node 22; the packages ask for it
  let resolve, reject
  const promise = new Promise((yes, no) => { resolve = yes; reject = no })
  return { promise, resolve, reject }
}

const { createHash } = await import('node:crypto')
const { createLibp2p } = await import('libp2p')
const { tcp } = await import('@libp2p/tcp')
const { noise } = await import('@chainsafe/libp2p-noise')
const { yamux } = await import('@chainsafe/libp2p-yamux')
const { identify } = await import('@libp2p/identify')
const { ping } = await import('@libp2p/ping')
const { multiaddr } = await import('@multiformats/multiaddr')
const { generateKeyPairFromSeed } = await import('@libp2p/crypto/keys')

const ECHO = '/carechain-test/echo/1'
const SIZE = 5 * 1024 * 1024

async function send (stream, data) {
  for (let at = 0; at < data.length; at += 50000) {
    if (!stream.send(data.subarray(at, at + 50000))) await stream.onDrain()
  }
}

async function echo (stream) {
  for await (const part of stream) {
    if (!stream.send(part)) await stream.onDrain()
  }
  await stream.close()
}

const node = await createLibp2p({
  privateKey: await generateKeyPairFromSeed('Ed25519', new Uint8Array(32).fill(7)),
  addresses: { listen: process.argv[2] === 'listen' ? ['/ip4/127.0.0.1/tcp/0'] : [] },
  transports: [tcp()],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  services: { identify: identify(), ping: ping() }
})

if (process.argv[2] === 'listen') {
  await node.handle(ECHO, echo)
  console.log(JSON.stringify({ address: node.getMultiaddrs()[0].toString() }))
  process.stdin.on('end', async () => { await node.stop(); process.exit(0) })
  process.stdin.resume()
} else {
  const identified = new Promise((resolve) => {
    node.addEventListener('peer:identify', (event) => resolve(event.detail), { once: true })
  })
  const connection = await node.dial(multiaddr(process.argv[3]))
  const data = new Uint8Array(SIZE)
  for (let at = 0; at < SIZE; at++) data[at] = (at * 31 + (at >> 8)) & 255
  const stream = await connection.newStream(ECHO)
  const sent = send(stream, data).then(() => stream.close())
  const hash = createHash('sha256')
  let size = 0
  for await (const part of stream) {
    const bytes = part.subarray()
    size += bytes.length
    hash.update(bytes)
  }
  await sent
  const found = await identified
  console.log(JSON.stringify({
    encryption: connection.encryption,
    multiplexer: connection.multiplexer,
    agent: found.agentVersion,
    protocols: found.protocols,
    ping: await node.services.ping.ping(connection.remotePeer),
    size,
    same: hash.digest('hex') === createHash('sha256').update(data).digest('hex')
  }))
  await node.stop()
}
