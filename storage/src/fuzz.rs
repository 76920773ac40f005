//! Bytes that may be anything, by the million: what the store reads from disk and network is fed to its readers.
//!
//! This is a mutator without instrumentation: it does not see which branches an input takes. In their place it goes by
//! what a target *answers*: an input whose answer (the message of a refusal, the kind of a success) was not seen yet
//! is kept, and mutated further. A target panics where its law does not hold; the input is then written to
//! `fuzz/found/`, and named with the seed.
//!
//! As a test it runs a moment a target, from one seed. `scripts/fuzz.sh` runs it as long as asked:
//!
//! - `HYPERTIDE_FUZZ_SECONDS`: how long a target; `HYPERTIDE_FUZZ_SEED`: where to begin.
//! - `HYPERTIDE_FUZZ_KEEP=1`: inputs with new answers go to `fuzz/corpus/<target>/`, which every run begins with.

mod targets;

use std::{
    collections::BTreeMap,
    env, fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    time::{Duration, Instant},
};

use xxhash_rust::xxh3::xxh3_64;

/// How long a target runs as a test.
const SECONDS: f64 = 1.0;
const SEED: u64 = 1;
/// Longest input that a mutation makes.
const INPUT_BYTES_MAX: usize = 1 << 14;
/// Inputs that are kept for mutation.
const POOL_MAX: usize = 2000;
/// Inputs that one run adds to the corpus of a target, and the longest of them.
const KEPT_MAX: usize = 60;
const KEPT_BYTES_MAX: usize = 1024;

/// Reads an input; gives what came of it in a few words. Panics where a law does not hold.
type Run = Box<dyn Fn(&[u8]) -> String>;

/// Something that reads bytes.
struct Target {
    name: &'static str,
    /// Inputs to begin with.
    seeds: Vec<Vec<u8>>,
    run: Run,
}

/// Numbers that look random, the same for the same seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }
}

/// Bytes in whose place readers often stumble.
const ODD_BYTES: [u8; 9] = [0, 1, 2, 4, 8, 0x7f, 0x80, 0xfe, 0xff];

/// Changes an input in one to four of the usual ways.
fn mutate(input: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    for _ in 0..=random.below(4) {
        let len = input.len();
        let at = random.below(len);
        let end = (at + 1 + random.below(16)).min(len);
        match random.below(9) {
            0 if len > 0 => input[at] ^= 1 << random.below(8),
            1 if len > 0 => input[at] = random.next() as u8,
            2 if len > 0 => input[at] = ODD_BYTES[random.below(ODD_BYTES.len())],
            3 if len > 0 => {
                input[at] = input[at].wrapping_add(1).wrapping_sub(2 * random.below(2) as u8)
            }
            4 => input.truncate(at),
            5 => drop(input.drain(at..end)),
            6 => {
                let copy = input[at..end].to_vec();
                let to = random.below(len + 1);
                input.splice(to..to, copy);
            }
            7 if !other.is_empty() => {
                let from = random.below(other.len());
                let until = (from + 1 + random.below(64)).min(other.len());
                input.splice(at..end.min(len), other[from..until].iter().copied());
            }
            _ => {
                let odd = random.next().to_le_bytes();
                let width = 1 << random.below(4);
                input.splice(at..(at + width).min(len), odd.into_iter().take(width));
            }
        }
    }
    input.truncate(INPUT_BYTES_MAX);
}

fn directory(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz").join(name)
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let Ok(entries) = fs::read_dir(directory("corpus").join(target)) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).expect("the corpus can be read")).collect()
}

fn save(directory: PathBuf, input: &[u8]) -> PathBuf {
    fs::create_dir_all(&directory).expect("the directory can be made");
    let path = directory.join(format!("{:016x}", xxh3_64(input)));
    fs::write(&path, input).expect("the input can be written");
    path
}

fn setting<T: std::str::FromStr>(name: &str, usual: T) -> T {
    env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

/// The answer of a target, its law checked.
fn answer(target: &Target, input: &[u8], seed: u64) -> String {
    let name = target.name;
    catch_unwind(AssertUnwindSafe(|| (target.run)(input))).unwrap_or_else(|_| {
        let path = save(directory("found").join(name), input);
        panic!("target {name}, seed {seed}: {} breaks a law", path.display());
    })
}

/// Runs a target; gives how many inputs it read.
fn run(target: &Target) -> u64 {
    let seed = setting("HYPERTIDE_FUZZ_SEED", SEED);
    let budget = Duration::from_secs_f64(setting("HYPERTIDE_FUZZ_SECONDS", SECONDS));
    let keep = setting("HYPERTIDE_FUZZ_KEEP", 0) > 0;
    let mut random = Random(seed ^ xxh3_64(target.name.as_bytes()));
    let mut answers: BTreeMap<String, u64> = BTreeMap::new();
    let mut pool = corpus(target.name);
    pool.extend(target.seeds.iter().cloned());
    for input in &pool {
        *answers.entry(answer(target, input, seed)).or_default() += 1;
    }
    let known = pool.len();
    let (begin, mut inputs) = (Instant::now(), pool.len() as u64);
    while begin.elapsed() < budget {
        for _ in 0..16 {
            let mut input = pool[random.below(pool.len())].clone();
            let other = pool[random.below(pool.len())].clone();
            mutate(&mut input, &other, &mut random);
            inputs += 1;
            let seen = answers.entry(answer(target, &input, seed)).or_default();
            *seen += 1;
            if *seen == 1 && pool.len() < POOL_MAX {
                // A corpus is read by people, too: few inputs, and short ones.
                if keep && pool.len() < known + KEPT_MAX && input.len() <= KEPT_BYTES_MAX {
                    save(directory("corpus").join(target.name), &input);
                }
                pool.push(input);
            }
        }
    }
    println!(
        "{}: seed {seed}, {inputs} inputs in {:.1} s, {} answers, {} of the inputs new to the corpus",
        target.name,
        begin.elapsed().as_secs_f64(),
        answers.len(),
        pool.len() - known,
    );
    inputs
}

#[test]
fn blocks() {
    assert!(run(&targets::blocks()) > 50);
}

#[test]
fn headers() {
    assert!(run(&targets::headers()) > 50);
}

#[test]
fn payloads() {
    assert!(run(&targets::payloads()) > 50);
}

#[test]
fn journal_rows() {
    assert!(run(&targets::journal_rows()) > 50);
}

#[test]
fn journals() {
    assert!(run(&targets::journals()) > 10);
}

/// The machine notices a law that does not hold, and keeps the input that showed it.
#[test]
fn a_broken_law_is_found() {
    let broken = Target {
        name: "broken",
        seeds: vec![b"The law holds".to_vec()],
        run: Box::new(|input| {
            assert!(!input.starts_with(b"The mas"), "it does not");
            format!("{:?}", input.get(4))
        }),
    };
    let mut random = Random(7);
    let mut found = false;
    for _ in 0..200_000 {
        let mut input = broken.seeds[0].clone();
        mutate(&mut input, b"The mast", &mut random);
        found |= catch_unwind(AssertUnwindSafe(|| (broken.run)(&input))).is_err();
        if found {
            break;
        }
    }
    assert!(found);
}
