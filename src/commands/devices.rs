//! `mbqc devices`: CUDA devices, and in which form kernels are loaded on them.

use mbqc_kernels::cuda::{About, Device, DeviceError, units};
use serde_json::json;

use crate::Error;
use crate::cli::Common;
use crate::report::print;

/// A device with what became of each unit of kernels: the form that was loaded, or why none was.
struct Seen {
    about: About,
    units: Vec<(&'static str, Result<String, String>)>,
}

/// Opens every device, loads all kernels, and prints what came of it. Without a driver or a device there is nothing to list,
/// which is said and is no error.
pub fn devices(common: &Common) -> Result<(), Error> {
    let found = match Device::count() {
        Ok(count) => (0..count).map(see).collect::<Result<Vec<_>, _>>()?,
        Err(error @ (DeviceError::NoDriver | DeviceError::OldDriver { .. })) => {
            return match common.json {
                true => print(&format!("{:#}", json!({"devices": [], "why": error.to_string()}))),
                false => print(&format!("no CUDA device can be used: {error}")),
            };
        }
        Err(error) => return Err(error.into()),
    };
    if common.json {
        let devices = found.iter().map(|seen| {
            let About { ordinal, name, capability, multiprocessors, memory, cache, shared, driver } = &seen.about;
            let units: serde_json::Map<_, _> = seen
                .units
                .iter()
                .map(|(unit, form)| {
                    let form = match form {
                        Ok(form) => json!({"loaded": form}),
                        Err(why) => json!({"loaded": null, "why": why}),
                    };
                    ((*unit).to_owned(), form)
                })
                .collect();
            json!({
                "device": ordinal,
                "name": name,
                "capability": format!("{}.{}", capability.0, capability.1),
                "multiprocessors": multiprocessors,
                "memory": memory,
                "cache": cache,
                "shared_memory_of_a_block": shared,
                "driver": format!("{}.{}", driver.0, driver.1),
                "kernels": units,
            })
        });
        return print(&format!("{:#}", json!({"devices": devices.collect::<Vec<_>>()})));
    }
    if found.is_empty() {
        return print("there is a CUDA driver, and no device");
    }
    print(&found.iter().map(told).collect::<Vec<_>>().join("\n"))
}

fn see(ordinal: usize) -> Result<Seen, Error> {
    let device = Device::open(ordinal)?;
    let capability = device.about().capability;
    let units = units().map(|unit| match unit.only {
        Some((major, minor)) if (major, minor) != capability => {
            (unit.name, Err(format!("it is for sm_{major}{minor} alone")))
        }
        _ => (unit.name, device.load(unit).map_err(|error| error.to_string())),
    });
    Ok(Seen { about: device.about().clone(), units: units.collect() })
}

fn told(seen: &Seen) -> String {
    let About { ordinal, name, capability, multiprocessors, memory, cache, driver, .. } = &seen.about;
    let mut lines = vec![format!(
        "cuda:{ordinal}  {name}, sm_{}{}, {multiprocessors} multiprocessors, {:.1} GiB, {} MiB of cache, driver for CUDA {}.{}",
        capability.0,
        capability.1,
        *memory as f64 / (1u64 << 30) as f64,
        cache >> 20,
        driver.0,
        driver.1
    )];
    lines.extend(seen.units.iter().map(|(unit, form)| match form {
        Ok(form) => format!("        {unit:<9} {form}"),
        Err(why) => format!("        {unit:<9} not loaded: {why}"),
    }));
    lines.join("\n")
}
