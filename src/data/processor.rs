//! A folder's image processor: 8-bit pictures become the floats that the vision encoder takes.
//!
//! What `preprocessor_config.json` says is followed: rescaling, then normalising, in single precision. Pictures must
//! already have the size the processor would resize them to.

use std::path::Path;

use mbqc_passes::array::{Array, Buf};
use mbqc_passes::ir::DType;
use serde_json::Value;

use super::Error;

/// The size of picture a processor answers for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Size {
    /// Exactly these pixels.
    Exact {
        /// Rows.
        height: usize,
        /// Columns.
        width: usize,
    },
    /// The shorter side has this many pixels.
    ShortestEdge(usize),
    /// Pictures are taken as they are.
    Any,
    /// A rule that is not supported, as written in the configuration.
    Other(String),
}

/// An image processor.
#[derive(Clone, Debug, PartialEq)]
pub struct Processor {
    /// Size of picture.
    pub size: Size,
    /// What pixel values are multiplied with first.
    pub rescale: Option<f64>,
    /// Mean and standard deviation per channel; a single one serves all channels.
    pub normalize: Option<Vec<(f32, f32)>>,
}

impl Processor {
    /// Reads the processor of a model folder; `None` when the folder has none.
    pub fn of_folder(folder: &Path) -> Result<Option<Processor>, Error> {
        for (file, key) in [("preprocessor_config.json", None), ("processor_config.json", Some("image_processor"))] {
            let path = folder.join(file);
            let text = match std::fs::read_to_string(&path) {
                Ok(text) => text,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(Error::io(&path)(error)),
            };
            let config: Value =
                serde_json::from_str(&text).map_err(|e| Error::Processor(format!("{}: {e}", path.display())))?;
            match key {
                None => return Processor::from_config(&config).map(Some),
                Some(key) => {
                    if let Some(config) = config.get(key) {
                        return Processor::from_config(config).map(Some);
                    }
                }
            }
        }
        Ok(None)
    }

    /// Reads the content of `preprocessor_config.json`.
    pub fn from_config(config: &Value) -> Result<Processor, Error> {
        let switch = |key: &str, default: bool| config.get(key).and_then(Value::as_bool).unwrap_or(default);
        let rescale = switch("do_rescale", true)
            .then(|| config.get("rescale_factor").and_then(Value::as_f64).unwrap_or(1.0 / 255.0));
        let normalize = if switch("do_normalize", config.get("image_mean").is_some()) {
            let (mean, std) = (floats(config, "image_mean")?, floats(config, "image_std")?);
            if mean.len() != std.len() || mean.is_empty() {
                let (mean, std) = (mean.len(), std.len());
                return Err(Error::Processor(format!("image_mean has {mean} channels, image_std has {std}")));
            }
            if std.contains(&0.0) {
                return Err(Error::Processor("image_std holds a zero".to_owned()));
            }
            Some(mean.into_iter().zip(std).collect())
        } else {
            None
        };
        let size = if switch("do_center_crop", false) {
            size(config.get("crop_size").or_else(|| config.get("size")))
        } else if switch("do_resize", true) {
            size(config.get("size"))
        } else {
            Size::Any
        };
        Ok(Processor { size, rescale, normalize })
    }

    /// Turns `uint8` pictures `[..., H, W, C]` into floats `[..., C, H, W]`.
    pub fn pixel_values(&self, images: &Array) -> Result<Array, Error> {
        let (Buf::Bytes(bytes), DType::U8) = (&images.buf, images.dtype) else {
            return Err(Error::Images(format!("expected uint8 pictures, found {}", images.dtype)));
        };
        let [batch @ .., height, width, channels] = images.shape.as_slice() else {
            return Err(Error::Images(format!("expected [.., height, width, channels], found {:?}", images.shape)));
        };
        let (height, width, channels) = (*height, *width, *channels);
        self.check_size(height, width)?;
        if !matches!(channels, 1 | 3 | 4) {
            let reason = "expected [.., height, width, channels] with the channels last";
            return Err(Error::Images(format!("{reason}, found {:?}", images.shape)));
        }
        let tables = self.tables(channels)?;
        let plane = height * width;
        let mut out = vec![0.0_f32; bytes.len()];
        let picture = (plane * channels).max(1);
        for (target, source) in out.chunks_exact_mut(picture).zip(bytes.chunks_exact(picture)) {
            for (channel, table) in tables.iter().enumerate() {
                for (pixel, value) in target[channel * plane..(channel + 1) * plane].iter_mut().enumerate() {
                    *value = table[usize::from(source[pixel * channels + channel])];
                }
            }
        }
        let shape: Vec<usize> = batch.iter().copied().chain([channels, height, width]).collect();
        Ok(Array::f32(shape, out))
    }

    fn check_size(&self, height: usize, width: usize) -> Result<(), Error> {
        let expected = match &self.size {
            Size::Exact { height: h, width: w } if (*h, *w) != (height, width) => format!("{h} x {w} pixels"),
            Size::ShortestEdge(edge) if *edge != height.min(width) => format!("a shorter side of {edge} pixels"),
            Size::Exact { .. } | Size::ShortestEdge(_) | Size::Any => return Ok(()),
            Size::Other(rule) => {
                let reason = format!("the processor's size rule {rule} is not supported");
                return Err(Error::Images(format!("{reason}; give `pixel_values` instead of `images`")));
            }
        };
        Err(Error::Images(format!(
            "found {height} x {width} pixels (height x width), the processor expects {expected}; resize the pictures \
             before saving the set, or give `pixel_values` instead"
        )))
    }

    /// For every channel the float of each of the 256 pixel values.
    fn tables(&self, channels: usize) -> Result<Vec<[f32; 256]>, Error> {
        let affine = match self.normalize.as_deref() {
            None => vec![(0.0, 1.0); channels],
            Some([one]) => vec![*one; channels],
            Some(many) if many.len() == channels => many.to_vec(),
            Some(many) => {
                let expected = many.len();
                return Err(Error::Images(format!("found {channels} channels, the processor expects {expected}")));
            }
        };
        let value = |pixel: usize| (pixel as f64 * self.rescale.unwrap_or(1.0)) as f32;
        Ok(affine.iter().map(|(mean, std)| std::array::from_fn(|pixel| (value(pixel) - mean) / std)).collect())
    }
}

fn floats(config: &Value, key: &str) -> Result<Vec<f32>, Error> {
    let bad = || Error::Processor(format!("{key} is missing or not a list of numbers, but do_normalize is set"));
    match config.get(key) {
        Some(Value::Array(all)) => all.iter().map(|v| v.as_f64().map(|x| x as f32).ok_or_else(bad)).collect(),
        Some(Value::Number(one)) => Ok(vec![one.as_f64().ok_or_else(bad)? as f32]),
        _ => Err(bad()),
    }
}

fn size(rule: Option<&Value>) -> Size {
    let Some(rule) = rule else { return Size::Any };
    let number = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok());
    let field = |key: &str| rule.get(key).and_then(number);
    match (number(rule), field("height"), field("width"), field("shortest_edge"), field("longest_edge")) {
        (Some(edge), ..) => Size::Exact { height: edge, width: edge },
        (_, Some(height), Some(width), ..) => Size::Exact { height, width },
        (_, _, _, Some(edge), None) => Size::ShortestEdge(edge),
        _ => Size::Other(rule.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn picture(shape: &[usize]) -> Array {
        let bytes: Vec<u8> = (0..shape.iter().product::<usize>()).map(|i| (i * 5 % 256) as u8).collect();
        Array { dtype: DType::U8, shape: shape.to_vec(), buf: Buf::Bytes(bytes.into()) }
    }

    #[test]
    fn rescales_normalises_and_transposes() {
        let processor = Processor::from_config(&json!({
            "do_resize": true, "size": {"height": 2, "width": 3}, "do_rescale": true, "rescale_factor": 1.0 / 255.0,
            "do_normalize": true, "image_mean": [0.5, 0.5, 0.25], "image_std": [0.5, 0.5, 0.5],
        }))
        .unwrap();
        let images = picture(&[2, 2, 3, 3]);
        let values = processor.pixel_values(&images).unwrap();
        assert_eq!(values.shape, [2, 3, 2, 3]);
        let raw = images.to_i64s().unwrap();
        for (at, &found) in values.as_f32().unwrap().iter().enumerate() {
            let (n, c, pixel) = (at / 18, at / 6 % 3, at % 6);
            let byte = raw[n * 18 + pixel * 3 + c] as f64;
            let expected = (byte / 255.0 - [0.5, 0.5, 0.25][c]) / 0.5;
            assert!((f64::from(found) - expected).abs() < 1e-6, "single precision: {found} {expected}");
        }
    }

    #[test]
    fn sizes() {
        let check = |config: Value, shape: &[usize], expected: &str| {
            let result = Processor::from_config(&config).and_then(|p| p.pixel_values(&picture(shape)));
            let message = result.map_or_else(|e| e.to_string(), |_| "fine".to_owned());
            assert!(message.contains(expected), "{config}: {message}");
        };
        check(json!({"size": {"height": 4, "width": 4}}), &[1, 2, 4, 3], "found 2 x 4 pixels");
        check(json!({"size": {"height": 4, "width": 4}}), &[1, 2, 4, 3], "expects 4 x 4 pixels");
        check(json!({"size": 4, "do_resize": false}), &[1, 2, 4, 3], "fine");
        check(json!({"size": 4}), &[1, 4, 4, 3], "fine");
        check(json!({"size": {"shortest_edge": 2}}), &[1, 2, 4, 3], "fine");
        check(json!({"size": {"shortest_edge": 3}}), &[1, 2, 4, 3], "shorter side of 3");
        let crop =
            json!({"size": {"shortest_edge": 5}, "do_center_crop": true, "crop_size": {"height": 2, "width": 2}});
        check(crop, &[2, 2, 3], "fine");
        check(json!({"size": {"longest_edge": 8}}), &[1, 2, 4, 3], "give `pixel_values`");
        check(json!({"image_mean": [0.5], "image_std": [0.0]}), &[1, 2, 4, 3], "zero");
        check(json!({"image_mean": [0.5, 0.5], "image_std": [0.5, 0.5]}), &[1, 2, 4, 3], "found 3 channels");
        check(json!({"do_normalize": true}), &[1, 2, 4, 3], "image_mean is missing");
    }

    #[test]
    fn folders() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Processor::of_folder(folder.path()).unwrap(), None);
        let nested = json!({"image_processor": {"size": {"height": 8, "width": 8}}});
        std::fs::write(folder.path().join("processor_config.json"), nested.to_string()).unwrap();
        let processor = Processor::of_folder(folder.path()).unwrap().unwrap();
        assert_eq!(processor.size, Size::Exact { height: 8, width: 8 });
        std::fs::write(folder.path().join("preprocessor_config.json"), "{").unwrap();
        assert!(Processor::of_folder(folder.path()).is_err());
    }
}
