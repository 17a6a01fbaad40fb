//! probe
use floe_tests::{dag, kubo::Kubo, noise, seeder::Seeder};
use std::time::Duration;
#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let dir = tempfile::tempdir()?;
    let kubo = Kubo::start(&dir.path().join("kubo"))?;
    let f = dir.path().join("f");
    let data = noise(200 << 20, 3);
    std::fs::write(&f, &data)?;
    let root = kubo.ipfs(&["add", "-Q", "--cid-version=1", f.to_str().unwrap()])?;
    let blocks = dag::over(&data, 256 << 10);
    let leaves: Vec<_> = blocks.iter().filter(|b| b.cid().codec() == 0x55).map(|b| *b.cid()).collect();
    println!("{root} {} leaves {:?}", leaves.len(), kubo.addresses()?);
    let s = Seeder::start().await?;
    let t = std::time::Instant::now();
    let got = s.fetch(&leaves, &kubo.addresses()?, Duration::from_secs(60)).await?;
    println!("kubo -> seeder: {} blocks in {:?}", got.len(), t.elapsed());
    let s2 = Seeder::start().await?;
    s.add(&got);
    let t = std::time::Instant::now();
    let got = s2.fetch(&leaves, &s.addresses(), Duration::from_secs(60)).await?;
    println!("seeder -> seeder: {} blocks in {:?}", got.len(), t.elapsed());
    let raw = floe_tests::raw::serve(got.iter().map(|b| b.data().clone()).collect()).await?;
    println!("raw {:?}", floe_tests::raw::read(&raw, 200 << 20).await?);
    // kubo from seeder
    let k2 = Kubo::start(&dir.path().join("k2"))?;
    s2.add(&blocks);
    k2.ipfs(&["swarm", "connect", &s2.addresses()[0]])?;
    let t = std::time::Instant::now();
    k2.ipfs(&["pin", "add", "--progress=false", &blocks.last().unwrap().cid().to_string()])?;
    println!("seeder -> kubo: {:?}", t.elapsed());
    Ok(())
}
