//! Receipts: what a device did with the kernels of a unit, valid for the sources with this hash alone.

use mbqc_kernels::cuda::{Device, DeviceWeight, Spread, TILE_CHANNELS, TILE_K, source_hash};
use mbqc_kernels::{FORMATS, Scheme};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

/// What the cases of a kernel came to.
#[derive(Default)]
struct Checked {
    cases: usize,
    runs: usize,
    /// Of outputs in f32, and of those in 16 bits.
    errors: [f64; 2],
}

#[derive(Default)]
struct Unit {
    kernels: BTreeMap<String, Checked>,
    times: Vec<Value>,
}

/// The parts with large cases: of kernels for weights alone, for 8-bit activations, of all that many rows take, for 256 rows. The last that
/// units of those kinds have to do with.
pub(crate) const LARGE: [&str; 4] =
    ["few rows, large", "integers, large", "many rows, large", "256 rows at once, large"];

pub(crate) struct Receipts {
    device: Arc<Device>,
    out: Option<PathBuf>,
    units: BTreeMap<String, Unit>,
    /// With the unit that they say something of; of all of them otherwise.
    faults: Vec<(Option<String>, String)>,
    /// By unit, whether blocks of the kernel for 64 rows shared a band, and whether one had several.
    met: BTreeMap<String, [bool; 2]>,
    /// Parts with large cases that have come to their end, after all small ones, with every case run often enough.
    ended: Vec<String>,
}

impl Receipts {
    pub(crate) fn new(device: &Arc<Device>, out: Option<PathBuf>) -> Receipts {
        Receipts {
            device: device.clone(),
            out,
            units: BTreeMap::new(),
            faults: Vec::new(),
            met: BTreeMap::new(),
            ended: Vec::new(),
        }
    }

    /// A case was run that often, with this error.
    pub(crate) fn checked(&mut self, unit: &str, kernel: &str, single: bool, error: f64, runs: usize) {
        let unit = self.units.entry(unit.to_owned()).or_default();
        let checked = unit.kernels.entry(kernel.to_owned()).or_default();
        checked.cases += 1;
        checked.runs += runs;
        let worst = &mut checked.errors[usize::from(!single)];
        *worst = worst.max(error);
    }

    /// Something is wrong with a unit; if none is named, no receipt of this run is without it.
    pub(crate) fn fault(&mut self, unit: Option<&str>, fault: &str) {
        self.faults.push((unit.map(str::to_owned), fault.to_owned()));
    }

    /// How a product by the kernel for 64 rows was dealt out.
    pub(crate) fn dealt(&mut self, weight: &DeviceWeight, n: usize) {
        let Spread { together, blocks } = weight.spread(64);
        let (bands, k_tiles) = (n.div_ceil(TILE_CHANNELS).div_ceil(together), weight.k().div_ceil(TILE_K));
        let units = bands * k_tiles;
        let own = [!units.is_multiple_of(blocks) || !(units / blocks).is_multiple_of(k_tiles), blocks < bands];
        let met = self.met.entry(weight.format().name.to_owned()).or_default();
        met.iter_mut().zip(own).for_each(|(met, own)| *met |= own);
    }

    /// The units whose checks have met neither way, or only one.
    pub(crate) fn unmet(&self) -> Vec<String> {
        let formats = FORMATS.iter().filter(|format| format.tiles.is_some());
        formats.map(|format| format.name.to_owned()).filter(|name| self.met.get(name) != Some(&[true; 2])).collect()
    }

    /// Nothing is left to check of the units that this part, the last but for other units', is about.
    pub(crate) fn complete(&mut self, part: &str) {
        self.ended.push(part.to_owned());
    }

    /// Whether all cases of a unit have had their say.
    fn is_complete(&self, unit: &str) -> bool {
        let [weights, integers, many, wide] = LARGE;
        let format = FORMATS.iter().find(|format| format.name == unit);
        let last = match format.map(|format| format.scheme) {
            _ if unit.ends_with("_wide") => wide,
            Some(Scheme::WeightOnly) => weights,
            Some(Scheme::WeightActivation) => integers,
            None => many,
        };
        self.ended.iter().any(|part| part == last)
    }

    /// A row of a table of times.
    pub(crate) fn time(&mut self, unit: &str, row: Value) {
        self.units.entry(unit.to_owned()).or_default().times.push(row);
    }

    /// Writes what there is so far; if that fails, says so and goes on.
    pub(crate) fn keep(&self) {
        if let Err(error) = self.write() {
            println!("no receipts: {error}");
        }
    }

    /// Writes what there is so far.
    pub(crate) fn write(&self) -> Result<(), String> {
        let Some(folder) = &self.out else { return Ok(()) };
        let about = self.device.about();
        std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |time| time.as_secs());
        // One for each device: they do not take each other's place.
        let device = about.name.to_lowercase().replace(|c: char| !c.is_ascii_alphanumeric(), "-");
        for (name, unit) in &self.units {
            let loaded = self.device.loaded();
            let image = loaded.iter().find(|loaded| loaded.unit == name).map(|loaded| loaded.from.clone());
            let kernels: Map<String, Value> = unit
                .kernels
                .iter()
                .map(|(name, checked)| {
                    let Checked { cases, runs, errors: [single, half] } = checked;
                    (name.clone(), json!({"cases": cases, "runs": runs, "error_f32": single, "error_16": half}))
                })
                .collect();
            let path = folder.join(format!("{name}.{device}.json"));
            // Checks and times may come from runs of their own.
            let before: Value =
                std::fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default();
            let hash = source_hash(name)?;
            let same = before["sources"] == *hash && before["device"] == *about.name;
            let complete = if kernels.is_empty() && same { before["complete"] == true } else { self.is_complete(name) };
            let kernels = if kernels.is_empty() && same { before["kernels"].clone() } else { kernels.into() };
            let times = if unit.times.is_empty() && same { before["times"].clone() } else { unit.times.clone().into() };
            let earlier = before["faults"].as_array().filter(|_| same).cloned().unwrap_or_default();
            let own = self.faults.iter().filter(|(unit, _)| unit.as_ref().is_none_or(|unit| unit == name));
            let new = own.map(|(_, fault)| Value::from(fault.as_str())).filter(|fault| !earlier.contains(fault));
            let faults: Vec<Value> = earlier.iter().cloned().chain(new).collect();
            let receipt = json!({
                "unit": name,
                "sources": hash,
                "device": about.name,
                "capability": format!("{}.{}", about.capability.0, about.capability.1),
                "driver": format!("{}.{}", about.driver.0, about.driver.1),
                "image": image,
                "unix_time": seconds,
                "complete": complete,
                "faults": faults,
                "kernels": kernels,
                "times": times,
            });
            std::fs::write(&path, format!("{receipt:#}\n")).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        Ok(())
    }
}
