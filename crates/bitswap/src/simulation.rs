//! Client and server against each other over a network that loses, delays and cuts, from a seed.
//!
//! No socket, no task, no clock: the cores are called in the order that the seed gives. Invariants: every
//! wanted block arrives once, nobody holds anything afterwards, and a seed replays to the same history.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use floe_core::{Block, Cid};
use libp2p::PeerId;

use crate::client::Client;
use crate::config::Config;
use crate::message::{Message, Version};
use crate::server::Server;
use crate::testing::{Store, large};

/// Xorshift: enough to be different each time and the same for a seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// One seeder: its server, its blocks, and the messages on their way.
struct Seeder {
    id: PeerId,
    server: Server,
    store: Store,
    to_seeder: VecDeque<Message>,
    to_client: VecDeque<Message>,
}

struct World {
    chance: Chance,
    now: Duration,
    us: PeerId,
    client: Client,
    seeders: Vec<Seeder>,
    history: Vec<(u64, usize)>,
}

/// As over a wire: written and parsed.
fn over_the_wire(message: &Message) -> Message {
    let frame = message.encode(Version::V1_2);
    let mut bytes = BytesMut::new();
    frame.parts().iter().for_each(|part| bytes.extend_from_slice(part));
    let (_, body) = crate::message::take_varint(&bytes).unwrap();
    Message::decode(&Bytes::copy_from_slice(body)).unwrap()
}

fn peer(i: u8) -> PeerId {
    let key = libp2p::identity::Keypair::ed25519_from_bytes([i; 32]).unwrap();
    key.public().to_peer_id()
}

impl World {
    fn new(seed: u64, blocks: &[Block]) -> Self {
        let (us, now) = (peer(200), Duration::from_secs(1));
        let mut world = Self {
            chance: Chance(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            now,
            us,
            client: Client::default(),
            seeders: Vec::new(),
            history: Vec::new(),
        };
        for i in 0..4u8 {
            // The first has everything; the others have parts.
            let mut store = Store::default();
            store.extend(blocks.iter().filter(|_| i == 0 || world.chance.below(2) == 0));
            let server = Server::new(&Config::default(), [i; 32]);
            let (to_seeder, to_client) = (VecDeque::new(), VecDeque::new());
            world.seeders.push(Seeder { id: peer(i + 1), server, store, to_seeder, to_client });
        }
        (0..4).for_each(|i| world.connect(i));
        world
    }

    fn connect(&mut self, i: usize) {
        self.seeders[i].server.connected(self.us);
        self.client.connected(self.seeders[i].id, self.now);
    }

    fn cut(&mut self, i: usize) {
        let seeder = &mut self.seeders[i];
        seeder.server.disconnected(&self.us, self.now);
        seeder.to_seeder.clear();
        seeder.to_client.clear();
        self.client.disconnected(&seeder.id, self.now);
    }

    /// One thing happens.
    fn step(&mut self) {
        let i = usize::try_from(self.chance.below(4)).unwrap();
        match self.chance.below(100) {
            0 => {
                self.cut(i);
                self.connect(i);
            }
            1 => {
                self.now += Duration::from_millis(250);
                self.client.tick(self.now);
            }
            // A stream breaks: what was on its way to the seeder is lost.
            2 => {
                self.seeders[i].to_seeder.clear();
                self.client.start_over(&self.seeders[i].id);
            }
            // An answer is lost although its stream lives on (a peer that drops it): timers must do.
            3 => drop(self.seeders[i].to_client.pop_front()),
            4..20 => self.send_wants(i),
            20..40 => self.take_wants(i),
            40..70 => self.answer(i),
            _ => self.take_answer(i),
        }
    }

    fn send_wants(&mut self, i: usize) {
        let seeder = &mut self.seeders[i];
        if let Some(message) = self.client.next_message(&seeder.id) {
            seeder.to_seeder.push_back(over_the_wire(&message));
        }
    }

    fn take_wants(&mut self, i: usize) {
        let seeder = &mut self.seeders[i];
        if let Some(message) = seeder.to_seeder.pop_front() {
            seeder.server.on_wants(&self.us, message.full, message.wants, self.now);
        }
    }

    fn answer(&mut self, i: usize) {
        let Seeder { server, store, to_client, .. } = &mut self.seeders[i];
        if let Some(job) = server.next_job(self.now) {
            server.finish(job.run(store), self.now);
        }
        if let Some(answer) = server.next_answer(&self.us) {
            server.written(&self.us, answer.payloads.iter().map(|payload| payload.data.len()).sum());
            to_client.push_back(over_the_wire(&answer));
        }
    }

    fn take_answer(&mut self, i: usize) {
        let seeder = &mut self.seeders[i];
        let Some(message) = seeder.to_client.pop_front() else { return };
        self.client.on_presences(&seeder.id, &message.presences, self.now);
        let blocks: Vec<Block> = message.payloads.into_iter().map(|p| p.hashed().unwrap()).collect();
        let taken = self.client.on_blocks(&seeder.id, blocks, self.now);
        assert_eq!(taken.unwanted, 0, "an honest peer never strikes");
        self.history.push((i as u64, taken.useful));
    }
}

fn run(seed: u64) -> Vec<(u64, usize)> {
    let blocks: Vec<Block> = (0..300u32).map(|i| large(i, if i % 3 == 0 { 200_000 } else { 500 })).collect();
    let mut world = World::new(seed, &blocks);
    let id = world.client.open(*blocks[0].cid(), world.now);
    let mut got: BTreeMap<Cid, usize> = BTreeMap::new();
    let mut rest = &blocks[..];
    for steps in 0.. {
        assert!(steps < 400_000, "seed={seed}: {} of {} blocks came", got.len(), blocks.len());
        let room = world.client.room(id).min(rest.len());
        if room > 0 {
            let cids: Vec<Cid> = rest[..room].iter().map(|block| *block.cid()).collect();
            world.client.want(id, &cids, world.now);
            rest = &rest[room..];
        }
        world.step();
        world.client.take_actions();
        for block in world.client.take_blocks(id, world.now) {
            *got.entry(*block.cid()).or_default() += 1;
        }
        if got.len() == blocks.len() {
            break;
        }
    }
    assert!(got.values().all(|times| *times == 1), "seed={seed}");
    world.client.close(id);
    assert!(!world.client.is_busy(), "seed={seed}");
    assert_eq!(world.client.counts().2, 0, "seed={seed}");
    (0..4).for_each(|i| world.cut(i));
    for seeder in &world.seeders {
        assert_eq!(seeder.server.counts(), (0, 0), "seed={seed}");
    }
    world.history
}

#[test]
fn every_block_arrives_once_over_a_bad_network() {
    for seed in 1..=12 {
        run(seed);
    }
}

#[test]
fn a_seed_replays_to_the_same_history() {
    assert_eq!(run(77), run(77));
}
