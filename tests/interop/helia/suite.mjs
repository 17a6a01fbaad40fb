// A real Helia against a running Floe, on loopback.
//
//   node suite.mjs <api url> <token> <swarm multiaddr> <the same over /tls/ws> [MiB to push]
//
// NODE_EXTRA_CA_CERTS names the certificate of the /tls/ws listener.
//
// Prints `ok <what>` for each check and exits 0, or prints what went wrong and exits 1.
// Import Helia from @helia/utils: the `helia` package itself loads a native WebRTC module that the suite does not need.

import './with-resolvers.mjs'
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { noise } from '@chainsafe/libp2p-noise'
import { yamux } from '@chainsafe/libp2p-yamux'
import { bitswap } from '@helia/block-brokers'
import { createRemotePins } from '@helia/remote-pinning'
import { unixfs } from '@helia/unixfs'
import { Helia } from '@helia/utils'
import { identify } from '@libp2p/identify'
import { tcp } from '@libp2p/tcp'
import { webSockets } from '@libp2p/websockets'
import { multiaddr } from '@multiformats/multiaddr'
import { MemoryBlockstore } from 'blockstore-core'
import { MemoryDatastore } from 'datastore-core'
import { createLibp2p } from 'libp2p'

const [api, token, swarm, swarmTls, mib = '100'] = process.argv.slice(2)

async function node () {
  const libp2p = await createLibp2p({
    addresses: { listen: ['/ip4/127.0.0.1/tcp/0'] },
    transports: [tcp(), webSockets()],
    connectionEncrypters: [noise()],
    streamMuxers: [yamux()],
    services: { identify: identify() }
  })
  const helia = new Helia({
    libp2p,
    blockstore: new MemoryBlockstore(),
    datastore: new MemoryDatastore(),
    blockBrokers: [bitswap()],
    routers: []
  })
  await helia.start()
  return helia
}

// Bytes that repeat nowhere and are the same in each run.
function bytes (length, seed) {
  const out = new Uint8Array(length)
  let x = BigInt(seed) * 0x9e3779b97f4a7c15n & 0xffffffffffffffffn
  const words = new BigUint64Array(out.buffer, 0, Math.floor(length / 8))
  for (let i = 0; i < words.length; i++) {
    x ^= x << 13n & 0xffffffffffffffffn
    x ^= x >> 7n
    x ^= x << 17n & 0xffffffffffffffffn
    words[i] = x
  }
  return out
}

const sha256 = (data) => createHash('sha256').update(data).digest('hex')

function step (what, since) {
  console.log(`ok ${what} (${((performance.now() - since) / 1000).toFixed(1)} s)`)
}

async function collect (iterable) {
  const out = []
  for await (const item of iterable) out.push(item)
  return out
}

async function main () {
  const pusher = await node()
  const pins = createRemotePins(pusher, { endpointUrl: api, accessToken: token, pollInterval: 200 })
  const data = bytes(Number(mib) * 1024 * 1024, 7)

  let since = performance.now()
  const cid = await unixfs(pusher).addBytes(data)
  step(`imported ${mib} MiB as ${cid}`, since)

  since = performance.now()
  await collect(pins.add(cid, { signal: AbortSignal.timeout(240_000) }))
  step(`pushed ${mib} MiB through @helia/remote-pinning`, since)

  // Names, metadata, listing, replacing, removing: what the package offers.
  since = performance.now()
  const small = []
  for (let i = 0; i < 5; i++) {
    const one = await unixfs(pusher).addBytes(bytes(1024, 100 + i))
    await collect(pins.add(one, { name: `small ${i}`, metadata: { nr: String(i) }, signal: AbortSignal.timeout(60_000) }))
    small.push(one)
  }
  const listed = new Set((await collect(pins.ls())).map(pin => pin.cid.toString()))
  for (const one of [cid, ...small]) assert(listed.has(one.toString()), `${one} is not listed`)
  assert.equal(await pins.isPinned(small[0]), true)
  assert.equal((await pins.get(small[1])).metadata.nr, '1')
  await pins.setMetadata(small[1], { nr: 'one' })
  for (let i = 0; (await pins.isPinned(small[1])) !== true; i++) {
    assert(i < 100, 'the replaced pin did not become pinned')
    await new Promise(resolve => setTimeout(resolve, 100))
  }
  assert.equal((await pins.get(small[1])).metadata.nr, 'one')
  await collect(pins.rm(small[2]))
  assert.equal(await pins.isPinned(small[2]), false)
  step('ls, get, isPinned, setMetadata and rm', since)

  const stranger = createRemotePins(pusher, { endpointUrl: api, accessToken: 'floe_wrong' })
  await assert.rejects(collect(stranger.ls()), 'a wrong token must be refused')
  console.log('ok a wrong token is refused')

  await pusher.stop()

  await readBack(swarm, cid, data, `${mib} MiB`)
  // As a page that came over HTTPS must: through the operator's certificate.
  await readBack(swarmTls, small[0], bytes(1024, 100), '1 KiB over /tls/ws')
}

// A node of its own fetches `cid` from Floe alone.
async function readBack (address, cid, expected, what) {
  const since = performance.now()
  const reader = await node()
  await reader.libp2p.dial(multiaddr(address))
  const hash = createHash('sha256')
  let length = 0
  for await (const chunk of unixfs(reader).cat(cid, { signal: AbortSignal.timeout(240_000) })) {
    hash.update(chunk)
    length += chunk.length
  }
  assert.equal(length, expected.length)
  assert.equal(hash.digest('hex'), sha256(expected))
  step(`read ${what} back from Floe alone`, since)
  await reader.stop()
}

main().then(() => process.exit(0), (error) => {
  console.error('not ok', error)
  process.exit(1)
})
