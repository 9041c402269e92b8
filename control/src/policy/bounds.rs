//! How much policy there may be, judged before a parser sees it.
//!
//! Cedar's parser and evaluator recurse. A text that is nested deeply, or is one chain of ten thousand `&&`, would cost a stack
//! rather than an error; so both are counted first, by a scan that knows strings and comments and nothing else.

/// Bytes of all policy files together.
pub const POLICY_BYTES_MAX: usize = 1024 * 1024;
/// Files in a policy directory.
pub const FILES_MAX: usize = 256;
/// Policies: each costs a microsecond or so per decision.
pub const POLICIES_MAX: usize = 2048;
/// Brackets within brackets.
const DEPTH_MAX: usize = 32;
/// Operators in one policy.
const OPERATORS_MAX: usize = 512;

/// What is too much about `text`, and where (a byte position).
pub(super) fn judge(text: &str) -> Option<(usize, String)> {
    let bytes = text.as_bytes();
    let (mut depth, mut operators, mut policies, mut at) = (0_usize, 0, 0, 0);
    while at < bytes.len() {
        match bytes[at] {
            b'"' => at = end_of_string(bytes, at),
            b'/' if bytes.get(at + 1) == Some(&b'/') => {
                at = bytes[at..].iter().position(|b| *b == b'\n').map_or(bytes.len(), |n| at + n);
            }
            b'(' | b'[' | b'{' => depth += 1,
            b')' | b']' | b'}' => depth = depth.saturating_sub(1),
            b'&' | b'|' | b'+' | b'-' | b'*' | b'!' | b'<' | b'>' | b'.' | b'=' | b'?' => {
                operators += 1;
            }
            // `if`, `then`, `else`, `has`, `like`, `in`, `is`: words between spaces nest as well.
            b' ' | b'\n' | b'\t' if begins_operator(&bytes[at + 1..]) => operators += 1,
            b';' => {
                operators = 0;
                policies += 1;
            }
            _ => {}
        }
        if depth > DEPTH_MAX {
            return Some((at, format!("more than {DEPTH_MAX} brackets within each other")));
        }
        if operators > OPERATORS_MAX {
            return Some((at, format!("more than {OPERATORS_MAX} operators in one policy")));
        }
        if policies > POLICIES_MAX {
            return Some((at, format!("more than {POLICIES_MAX} policies")));
        }
        at += 1;
    }
    None
}

fn begins_operator(rest: &[u8]) -> bool {
    [b"if".as_slice(), b"has", b"like", b"in", b"is", b"unless", b"when"]
        .iter()
        .any(|word| rest.starts_with(word))
}

/// Where a string that begins at `from` ends: its closing quote, or the last byte.
fn end_of_string(bytes: &[u8], from: usize) -> usize {
    let mut at = from + 1;
    while at < bytes.len() && bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    at.min(bytes.len())
}
