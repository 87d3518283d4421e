//! The inputs to begin with, and the words to put into them: those of libFuzzer.

use std::fs;
use std::path::Path;

/// What is known of a target's inputs.
pub struct Corpus {
    /// In the order of their names.
    pub inputs: Vec<Vec<u8>>,
    /// Of the target's dictionary.
    pub words: Vec<Vec<u8>>,
}

impl Corpus {
    pub fn of(target: &str) -> Corpus {
        let folder = Path::new("fuzz/corpus").join(target);
        let files = fs::read_dir(&folder).unwrap_or_else(|it| panic!("{folder:?}: {it}"));
        let mut paths: Vec<_> = files.map(|file| file.expect("a file").path()).collect();
        // What libFuzzer adds has a name without an extension and is not committed.
        paths.retain(|path| path.extension().is_some());
        paths.sort_unstable();
        let inputs = paths.iter().map(|path| fs::read(path).expect("an input")).collect();
        let dictionary = format!("fuzz/dictionaries/{target}.dict");
        let words = fs::read_to_string(dictionary).map(|it| parse(&it)).unwrap_or_default();
        Corpus { inputs, words }
    }
}

/// A text below `fuzz`.
pub fn read(path: &str) -> String {
    fs::read_to_string(Path::new("fuzz").join(path)).unwrap_or_else(|it| panic!("{path}: {it}"))
}

/// The words of a dictionary of libFuzzer's: each in quotes on a line of its own, with
/// `\"`, `\\` and `\xNN` in it.
fn parse(dictionary: &str) -> Vec<Vec<u8>> {
    let lines = dictionary.lines().filter(|line| line.starts_with('"'));
    let word = |line: &str| line.strip_prefix('"')?.strip_suffix('"').and_then(unescape);
    lines.map(|line| word(line).unwrap_or_else(|| panic!("no word: {line}"))).collect()
}

fn unescape(text: &str) -> Option<Vec<u8>> {
    let (mut word, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((&first, after)) = rest.split_first() {
        let byte;
        (byte, rest) = match (first, after) {
            (b'\\', [b'x', digits @ ..]) => {
                let (digits, after) = digits.split_at_checked(2)?;
                (u8::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()?, after)
            }
            (b'\\', [escaped @ (b'\\' | b'"'), after @ ..]) => (*escaped, after),
            (b'\\', _) => return None,
            _ => (first, after),
        };
        word.push(byte);
    }
    Some(word)
}

#[test]
fn a_dictionary_is_read_as_libfuzzer_reads_it() {
    let words = parse("# a comment\n\n\"a\\\"b\"\n\"\\\\x\\x00\\xfF\"\n");
    assert_eq!(words, [b"a\"b".to_vec(), b"\\x\x00\xff".to_vec()]);
}
