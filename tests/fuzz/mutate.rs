//! Inputs out of others, by chance.

use rand::RngExt;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;

/// Makes inputs.
pub struct Mutator {
    /// So many of the inputs, the first ones, are sound, and half of all begin with them.
    pub seeds: usize,
    /// To be put in anywhere.
    pub words: Vec<Vec<u8>>,
    pub rng: SmallRng,
}

/// Bytes at the borders of what formats mean by them.
const BYTES: [u8; 16] =
    [0, 1, 7, 9, 10, 31, 32, b'"', b'0', b'9', b'[', b'{', 0x7f, 0x80, 0xfe, 0xff];

/// Numbers at the borders of their types, as text.
const NUMBERS: [&str; 14] = [
    "0",
    "-1",
    "1e999",
    "-0.0",
    "0.5",
    "1e-400",
    "65535",
    "65536",
    "4294967296",
    "1000000",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551616",
    "NaN",
];

impl Mutator {
    /// One of `inputs`, changed in a few places, `max_len` bytes at the most. A long one
    /// is made of parts that are repeated up to about that.
    pub fn next(&mut self, inputs: &[Vec<u8>], max_len: usize, is_long: bool) -> Vec<u8> {
        let of = if self.rng.random() { &inputs[..self.seeds] } else { inputs };
        let mut input = of.choose(&mut self.rng).cloned().unwrap_or_default();
        let changes = 1 << self.rng.random_range(0..4);
        for _ in 0..self.rng.random_range(1..=changes) {
            self.change(&mut input, inputs);
        }
        if is_long {
            self.repeat(&mut input, max_len);
        }
        input.truncate(max_len);
        input
    }

    fn change(&mut self, input: &mut Vec<u8>, inputs: &[Vec<u8>]) {
        match self.rng.random_range(0..12) {
            0 => self.at(input, |byte, rng| *byte ^= 1 << rng.random_range(0..8)),
            1 => self.at(input, |byte, rng| *byte = *BYTES.choose(rng).unwrap_or(&0)),
            2 => self.at(input, |byte, rng| *byte = rng.random()),
            3 => self.at(input, |byte, rng| {
                *byte = byte.wrapping_add(rng.random_range(0..5)).wrapping_sub(2)
            }),
            4 => {
                let range = self.range(input.len(), 16);
                input.drain(range);
            }
            5 => {
                let (range, to) = (self.range(input.len(), 64), self.place(input.len()));
                let part = input[range].to_vec();
                input.splice(to..to, part);
            }
            6 => {
                let other = inputs.choose(&mut self.rng).map_or(&[][..], Vec::as_slice);
                let part = other[self.range(other.len(), 256)].to_vec();
                let over = self.range(input.len(), 64);
                input.splice(over, part);
            }
            7 | 8 => {
                let Some(word) = self.words.choose(&mut self.rng).cloned() else { return };
                let to = self.place(input.len());
                let over = if self.rng.random() { to..to } else { self.range(input.len(), 8) };
                input.splice(over, word);
            }
            9 => self.renumber(input),
            10 => self.resize_length(input),
            _ => {
                let at = self.place(input.len());
                match self.rng.random_range(0..4) {
                    0 => input.truncate(at),
                    1 => _ = input.splice(..0, self.rng.random::<[u8; 4]>()),
                    _ => _ = input.splice(at..at, self.rng.random::<[u8; 2]>()),
                }
            }
        }
    }

    fn at(&mut self, input: &mut [u8], change: impl FnOnce(&mut u8, &mut SmallRng)) {
        if !input.is_empty() {
            let place = self.rng.random_range(0..input.len());
            change(&mut input[place], &mut self.rng);
        }
    }

    /// Another number in the place of one that is written in digits.
    fn renumber(&mut self, input: &mut Vec<u8>) {
        let from = self.place(input.len());
        let is_digit = |byte: &u8| byte.is_ascii_digit();
        let Some(start) = input[from..].iter().position(is_digit).map(|it| from + it) else {
            return;
        };
        let len = input[start..].iter().take_while(|byte| is_digit(byte)).count();
        let number = match self.rng.random() {
            true => (*NUMBERS.choose(&mut self.rng).unwrap_or(&"0")).to_owned(),
            false => (self.rng.random::<u64>() >> self.rng.random_range(0..64)).to_string(),
        };
        input.splice(start..start + len, number.into_bytes());
    }

    /// Another number in the place of two, four or eight bytes.
    fn resize_length(&mut self, input: &mut [u8]) {
        let width = 1 << self.rng.random_range(1..4);
        if input.len() < width {
            return;
        }
        let at = self.rng.random_range(0..=input.len() - width);
        let number: u64 = match self.rng.random_range(0..4) {
            0 => u64::MAX,
            1 => 0,
            2 => input.len() as u64,
            _ => self.rng.random::<u64>() >> self.rng.random_range(0..64),
        };
        input[at..at + width].copy_from_slice(&number.to_le_bytes()[..width]);
    }

    fn repeat(&mut self, input: &mut Vec<u8>, max_len: usize) {
        // Messages of protobuf that follow each other are one message.
        let is_whole: bool = self.rng.random();
        let range = if is_whole { 0..input.len() } else { self.range(input.len(), 1024) };
        let part = input[range.clone()].to_vec();
        let times = (max_len - input.len().min(max_len)) / part.len().max(1);
        input.splice(range, part.repeat(times.max(1)));
    }

    fn place(&mut self, len: usize) -> usize {
        self.rng.random_range(0..=len)
    }

    fn range(&mut self, len: usize, longest: usize) -> std::ops::Range<usize> {
        let from = self.place(len);
        from..self.rng.random_range(from..=len.min(from + longest))
    }
}
