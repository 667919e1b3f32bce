//! The modality class of every token row.

pub use mbqc_passes::facts::modality::Class;
pub use mbqc_passes::method::MaskShift;

use super::Error;

/// The class of every row. All masks have one entry per token. Padding wins over everything.
///
/// An image token that directly precedes the answer predicts its first token and is an answer row when shifted: its
/// logits are supervised. A token that is marked as image and answer at once is an error.
pub fn classes(answer: &[bool], vision: &[bool], valid: &[bool], shift: MaskShift) -> Result<Vec<Class>, Error> {
    let tokens = valid.len();
    for (name, mask) in [("answer", answer), ("vision", vision)] {
        if mask.len() != tokens {
            let found = mask.len();
            return Err(Error::Masks(format!("the {name} mask has {found} entries for {tokens} tokens")));
        }
    }
    if let Some(both) = (0..tokens).find(|&t| valid[t] && vision[t] && answer[t]) {
        return Err(Error::Masks(format!("token {both} is marked as image and as answer; it can be one of them only")));
    }
    let is_answer = |t: usize| match shift {
        MaskShift::Shifted => t + 1 < tokens && answer[t + 1] && valid[t + 1],
        MaskShift::Unshifted => answer[t],
    };
    let class = |t: usize| match () {
        () if !valid[t] => Class::Padding,
        () if is_answer(t) => Class::Answer,
        () if vision[t] => Class::Vision,
        () => Class::Prompt,
    };
    Ok((0..tokens).map(class).collect())
}

#[cfg(test)]
mod tests {
    use super::Class::{Answer, Padding, Prompt, Vision};
    use super::*;

    fn bits(text: &str) -> Vec<bool> {
        text.bytes().map(|b| b == b'1').collect()
    }

    #[test]
    fn rows_by_mask() {
        let check = |answer: &str, vision: &str, valid: &str, shift, expected: &[Class]| {
            assert_eq!(classes(&bits(answer), &bits(vision), &bits(valid), shift).unwrap(), expected);
        };
        let (answer, vision, valid) = ("000110", "110000", "111110");
        check(answer, vision, valid, MaskShift::Shifted, &[Vision, Vision, Answer, Answer, Prompt, Padding]);
        check(answer, vision, valid, MaskShift::Unshifted, &[Vision, Vision, Prompt, Answer, Answer, Padding]);
        check("001", "110", "111", MaskShift::Shifted, &[Vision, Answer, Prompt]);
        check("0011", "1100", "1110", MaskShift::Shifted, &[Vision, Answer, Prompt, Padding]);
        check("", "", "", MaskShift::Shifted, &[]);
    }

    #[test]
    fn contradictions_are_errors() {
        let message = |answer: &str, vision: &str| {
            classes(&bits(answer), &bits(vision), &bits("11"), MaskShift::Shifted).unwrap_err().to_string()
        };
        assert!(message("01", "01").contains("token 1 is marked"));
        assert!(message("01", "1").contains("vision mask has 1 entries for 2 tokens"));
    }
}
