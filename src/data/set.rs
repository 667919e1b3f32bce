//! A calibration or evaluation set on disk.
//!
//! Either a `.npz` file whose arrays have the samples along the leading axis, or a folder with one `.npz` per sample
//! (by name), whose arrays are as the graph takes them; there, arrays with one entry per token and single images may
//! lack the leading axis. Arrays without any axis are shared by all samples. A file is held in memory as stored, a
//! folder is read sample by sample.
//!
//! | array | meaning |
//! |---|---|
//! | `labels` | whole numbers, [-100](super::loss::IGNORED) where nothing is supervised, aligned with the tokens |
//! | `answer_mask` | per token; default: `labels` other than -100. Without `labels`: the ids there are the labels |
//! | `vision_mask` | per token: is an image token |
//! | `attention_mask` | per token; where 0, padding |
//! | `images` | `uint8` `[H, W, 3]` or `[images, H, W, 3]`; go through the image processor |
//! | `kind` | text or number: what kind of sample it is |
//! | anything else | an input of a graph, by name |

use std::path::{Path, PathBuf};

use indexmap::IndexMap;

use super::npy::Npy;
use super::sample::Sample;
use super::{Error, npz};

/// Fields that may lack the leading axis in a file of one sample, with their rank when they do.
const BARE: &[(&str, usize)] = &[
    ("input_ids", 1),
    ("attention_mask", 1),
    ("labels", 1),
    ("answer_mask", 1),
    ("vision_mask", 1),
    ("inputs_embeds", 2),
    ("images", 3),
];

/// Calibration or evaluation data.
#[derive(Debug)]
pub struct Set {
    path: PathBuf,
    store: Store,
}

#[derive(Debug)]
enum Store {
    Bundle { arrays: IndexMap<String, Npy>, len: usize },
    Files(Vec<PathBuf>),
}

impl Set {
    /// Opens a `.npz` file or a folder of them.
    pub fn open(path: &Path) -> Result<Set, Error> {
        let metadata = std::fs::metadata(path).map_err(Error::io(path))?;
        let store = if metadata.is_dir() { folder(path)? } else { bundle(path)? };
        Ok(Set { path: path.to_owned(), store })
    }

    /// Where the set lies.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Number of samples.
    pub fn len(&self) -> usize {
        match &self.store {
            Store::Bundle { len, .. } => *len,
            Store::Files(files) => files.len(),
        }
    }

    /// True when there is no sample; [`Set::open`] refuses such a set.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What messages call sample `index`: the name of its file, or its index.
    pub fn name(&self, index: usize) -> String {
        let file = match &self.store {
            Store::Bundle { .. } => None,
            Store::Files(files) => files.get(index).and_then(|path| path.file_name()),
        };
        file.map_or_else(|| index.to_string(), |name| name.to_string_lossy().into_owned())
    }

    /// Sample `index`, padding cut off.
    pub fn sample(&self, index: usize) -> Result<Sample, Error> {
        let beyond = || Error::Set {
            path: self.path.clone(),
            reason: format!("sample {index} does not exist, there are {}", self.len()),
        };
        match &self.store {
            Store::Bundle { arrays, len } => {
                if index >= *len {
                    return Err(beyond());
                }
                let each = arrays.iter().map(|(name, npy)| (name, npy.entry(index).unwrap_or_else(|| npy.clone())));
                let arrays = each.map(|(name, npy)| (name.clone(), npy)).collect();
                Sample::new(self.name(index), &arrays)
            }
            Store::Files(files) => {
                let path = files.get(index).ok_or_else(beyond)?;
                let mut arrays = npz::read(path)?;
                for (name, npy) in &mut arrays {
                    if BARE.contains(&(name.as_str(), npy.shape.len())) {
                        let shape = std::iter::once(1).chain(npy.shape.iter().copied()).collect();
                        let wide = npy.reshaped(shape);
                        *npy =
                            wide.map_err(|source| Error::Array { path: path.clone(), array: name.clone(), source })?;
                    }
                }
                Sample::new(self.name(index), &arrays)
            }
        }
    }

    /// All samples in order, each read when it is asked for.
    pub fn samples(&self) -> impl Iterator<Item = Result<Sample, Error>> + '_ {
        (0..self.len()).map(|index| self.sample(index))
    }
}

fn bundle(path: &Path) -> Result<Store, Error> {
    let fail = |reason: String| Error::Set { path: path.to_owned(), reason };
    let arrays = npz::read(path)?;
    let mut found: Option<(&str, usize)> = None;
    for (name, npy) in &arrays {
        let Some(&len) = npy.shape.first() else { continue };
        match found {
            Some((other, count)) if count != len => {
                return Err(fail(format!(
                    "the leading axis of every array is the samples, but `{other}` has {count} and `{name}` has {len}"
                )));
            }
            _ => found = Some((name, len)),
        }
    }
    match found {
        Some((_, len)) if len > 0 => Ok(Store::Bundle { arrays, len }),
        _ => Err(fail("holds no sample".to_owned())),
    }
}

fn folder(path: &Path) -> Result<Store, Error> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(Error::io(path))? {
        let file = entry.map_err(Error::io(path))?.path();
        if file.extension().is_some_and(|extension| extension == "npz") {
            files.push(file);
        }
    }
    files.sort();
    if files.is_empty() {
        let reason = "the folder holds no .npz file; a set is a .npz file or a folder with one .npz per sample";
        return Err(Error::Set { path: path.to_owned(), reason: reason.to_owned() });
    }
    Ok(Store::Files(files))
}

#[cfg(test)]
mod tests {
    use mbqc_passes::array::Array;
    use mbqc_passes::ir::DType;

    use super::super::npz::Packing;
    use super::super::{Class, MaskShift, Processor};
    use super::*;

    fn ints(shape: &[usize], values: &[i64]) -> Npy {
        Npy::from_array(&Array::i64(shape, values.to_vec()).with_dtype(DType::I32)).unwrap()
    }

    fn open(arrays: &[(&str, Npy)]) -> Result<Set, Error> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("set.npz");
        npz::write(&path, arrays.iter().map(|(name, npy)| (*name, npy.clone())), Packing::Deflated).unwrap();
        Set::open(&path)
    }

    fn ids(sample: &Sample) -> Vec<i64> {
        sample.arrays["input_ids"].to_i64s().unwrap()
    }

    #[test]
    fn padding_on_either_side_is_cut() {
        let set = open(&[
            ("input_ids", ints(&[3, 4], &[5, 6, 7, 0, 0, 0, 8, 9, 1, 0, 2, 0])),
            ("attention_mask", ints(&[3, 4], &[1, 1, 1, 0, 0, 0, 1, 1, 1, 0, 1, 0])),
            ("labels", ints(&[3, 4], &[-100, 6, 7, 9, -100, -100, -100, 9, -100, 9, 2, -100])),
            ("kind", Npy::from_strings(&["cap", "ocr", "cap"])),
        ])
        .unwrap();
        assert_eq!(set.len(), 3);
        let right = set.sample(0).unwrap();
        assert_eq!((ids(&right), right.labels.as_deref()), (vec![5, 6, 7], Some(&[-100, 6, 7][..])));
        assert_eq!((right.arrays["attention_mask"].shape.as_slice(), right.supervised()), (&[1, 3][..], 2));
        let left = set.sample(1).unwrap();
        assert_eq!((ids(&left), left.answer.as_slice()), (vec![8, 9], &[false, true][..]));
        assert_eq!(left.kind.as_deref(), Some("ocr"));
        let holes = set.sample(2).unwrap();
        assert_eq!((ids(&holes), holes.valid.as_slice()), (vec![1, 0, 2, 0], &[true, false, true, false][..]));
        assert_eq!(holes.labels.as_deref(), Some(&[-100, -100, 2, -100][..]), "padding is never supervised");
        assert!(set.sample(3).is_err());
    }

    #[test]
    fn labels_come_from_the_answer_mask() {
        let set = open(&[("input_ids", ints(&[1, 3], &[5, 6, 7])), ("answer_mask", ints(&[1, 3], &[0, 1, 1]))]);
        let sample = set.unwrap().sample(0).unwrap();
        assert_eq!(sample.labels.as_deref(), Some(&[-100, 6, 7][..]));
        let vision = [true, false, false];
        let expected = [Class::Answer, Class::Answer, Class::Prompt];
        assert_eq!(sample.classes(&vision, MaskShift::Shifted).unwrap(), expected);
        assert!(sample.classes(&vision[..2], MaskShift::Shifted).is_err());
    }
    #[test]
    fn images_stay_bytes() {
        let pixels = Array::i64([2, 2, 2, 3], (0..24).collect());
        let bytes = mbqc_passes::array::Buf::Bytes((0..24_u8).collect::<Vec<_>>().into());
        let images = Npy::from_array(&Array { dtype: DType::U8, shape: pixels.shape, buf: bytes }).unwrap();
        let sample = open(&[("images", images)]).unwrap().sample(1).unwrap();
        assert_eq!((sample.arrays["images"].stored_bytes(), sample.tokens()), (12, 0));
    }

    #[test]
    fn folders_are_read_by_name() {
        let folder = tempfile::tempdir().unwrap();
        for (name, id) in [("b.npz", 2), ("a.npz", 1)] {
            let arrays = [("input_ids", ints(&[2], &[id, id])), ("labels", ints(&[1, 2], &[-100, id]))];
            npz::write(&folder.path().join(name), arrays, Packing::Stored).unwrap();
        }
        let set = Set::open(folder.path()).unwrap();
        let samples: Vec<Sample> = set.samples().collect::<Result<_, _>>().unwrap();
        assert_eq!(samples.iter().map(ids).collect::<Vec<_>>(), [[1, 1], [2, 2]]);
        assert_eq!(samples[1].name, "b.npz");
        assert!(Set::open(tempfile::tempdir().unwrap().path()).unwrap_err().to_string().contains("no .npz file"));
    }

    #[test]
    fn contradictions_name_the_arrays() {
        let message = |arrays: &[(&str, Npy)]| {
            let sample = open(arrays).and_then(|set| set.sample(0));
            sample.unwrap_err().to_string()
        };
        let (two, three) = (ints(&[1, 2], &[1, 2]), ints(&[1, 3], &[1, 2, 3]));
        let text = message(&[("input_ids", two.clone()), ("labels", three)]);
        assert!(text.contains("`labels` has 3 tokens, `input_ids` has 2"), "{text}");
        let text = message(&[("input_ids", two.clone()), ("labels", ints(&[2, 1], &[1, 1]))]);
        assert!(text.contains("`input_ids` has 1 and `labels` has 2"), "{text}");
        let text = message(&[("input_ids", two), ("attention_mask", ints(&[1, 2], &[0, 0]))]);
        assert!(text.contains("zero everywhere"), "{text}");
        let text = message(&[("input_ids", ints(&[1], &[1]))]);
        assert!(text.contains("expected [1, tokens]"), "{text}");
        assert!(message(&[]).contains("no sample"));
    }

    /// The sample set and its model lie beside the sources in some checkouts; elsewhere there is nothing to open.
    #[test]
    fn sample_set() {
        let root = std::env::var_os("MBQC_SHARED").map(PathBuf::from);
        let root = root.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared")).join("testbed");
        let path = root.join("calib.npz");
        if !path.exists() {
            return;
        }
        let processor = Processor::of_folder(&root.join("hf/pocket-vlm")).unwrap().unwrap();
        let set = Set::open(&path).unwrap();
        assert_eq!(set.len(), 128);
        for sample in set.samples() {
            let sample = sample.unwrap();
            let vision = sample.vision.clone().unwrap();
            assert_eq!(vision.iter().filter(|&&v| v).count(), 256);
            assert!(sample.valid.iter().all(|&v| v) && sample.supervised() > 0);
            let rows = sample.classes(&vision, MaskShift::Shifted).unwrap();
            assert_eq!(rows.iter().filter(|&&row| row == Class::Answer).count(), sample.supervised());
            assert_eq!(sample.arrays["images"].stored_bytes(), 128 * 128 * 3);
            assert!(sample.kind.is_some());
            let bytes = sample.arrays["images"].to_i64s().unwrap();
            let pixels = processor.pixel_values(&sample.arrays["images"]).unwrap();
            assert_eq!(pixels.shape, [1, 3, 128, 128]);
            for (at, &found) in pixels.as_f32().unwrap().iter().enumerate() {
                let expected = bytes[at % 16384 * 3 + at / 16384] as f64 / 127.5 - 1.0;
                assert!((f64::from(found) - expected).abs() < 1e-6, "single precision: {found} {expected}");
            }
        }
    }
}
