// Node 20 has no Promise.withResolvers, which libp2p's newer dependencies call.
Promise.withResolvers ??= function () {
  let resolve, reject
  const promise = new Promise((res, rej) => { resolve = res; reject = rej })
  return { promise, resolve, reject }
}
