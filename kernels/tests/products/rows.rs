//! Rows beside one another: none changes another, however they are cut.

use super::*;

/// Some rows have outliers, in one group each: they are as exact as the others, which do not notice.
#[test]
fn rows_with_outliers_among_others() {
    let (n, k, group) = (37, 1024, 128);
    let loud_rows = [2, 3, 11, 16];
    each(k, group, |format, kernel, what| {
        if kernel.accuracy != Accuracy::Int16 {
            return;
        }
        let mut quiet = Case::new(format, n, k, group, bell(23));
        let mut loud = Case::new(format, n, k, group, bell(23));
        for row in loud_rows {
            loud.x[row * k + 3 * group + row] = 1000.0;
            quiet.x[row * k + 3 * group + row] = 0.0;
        }
        for rows in (1..=9).chain(15..=MOST_ROWS) {
            let [y, quiet_y] = [&loud, &quiet].map(|case| case.run(kernel, rows, Epilogue::default(), &Pool::new(2)));
            for row in 0..rows {
                let of_row = row * n..(row + 1) * n;
                if !loud_rows.contains(&row) {
                    assert_eq!(y[of_row.clone()], quiet_y[of_row], "{what}, row {row} of {rows}");
                    continue;
                }
                let (mut error, mut size) = (0.0, 0.0);
                for (channel, &y) in y[of_row].iter().enumerate() {
                    let [loud, quiet] = [&loud, &quiet].map(|case| case.exact(row, channel, Accuracy::Single).0);
                    error += (f64::from(y) - loud).powi(2);
                    size += quiet.powi(2);
                }
                let relative = (error / size).sqrt();
                assert!(relative <= 2e-4, "{what}, row {row} of {rows}: {relative:e}");
            }
        }
    });
}

#[test]
fn neither_threads_nor_what_other_rows_hold_changes_an_output() {
    for (n, k, group) in [(333, 200, 64), (37, 904, 128)] {
        each(k, group, |format, kernel, what| {
            let case = Case::new(format, n, k, group, heavy_tailed(7));
            let run = |case: &Case, rows, threads| {
                let y = case.run(kernel, rows, Epilogue::default(), &Pool::new(threads));
                y.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            for rows in [7, 17] {
                let one = run(&case, rows, 1);
                for threads in [2, 3, 8] {
                    assert_eq!(run(&case, rows, threads), one, "{what}, {rows} rows with {threads} threads");
                }
            }
            // What others hold says nothing, such as which of them have outliers; how many there are may change last bits.
            let mut others = [Case::new(format, n, k, group, bell(8)), Case::new(format, n, k, group, heavy_tailed(9))];
            for rows in [2, 5, 9, 16, 17] {
                let all = run(&case, rows, 1);
                for row in [0, rows / 2, rows - 1] {
                    let (x, y) = (row * k..(row + 1) * k, row * n..(row + 1) * n);
                    for other in &mut others {
                        let kept = other.x[x.clone()].to_vec();
                        other.x[x.clone()].copy_from_slice(&case.x[x.clone()]);
                        assert!(
                            run(other, rows, 1)[y.clone()] == all[y.clone()],
                            "{what}, {rows} rows: row {row} among others"
                        );
                        other.x[x.clone()].copy_from_slice(&kept);
                    }
                }
            }
        });
    }
}

/// More rows than are rounded in one go.
#[test]
fn blocks_of_rows_follow_one_another() {
    let (n, k, group, rows, half) = (36, 64, 32, 2100, 1050);
    each(k, group, |format, kernel, what| {
        if kernel.accuracy == Accuracy::Single {
            return;
        }
        let mut case = Case::new(format, n, k, group, |_| 0.0);
        case.x = (0..rows * k).map(heavy_tailed(23)).collect();
        let residual: Vec<f32> = (0..rows * n).map(|i| (i % 101) as f32).collect();
        let tokens = Tokens::new(&case.x, k, &Pool::single());
        let halves = case.x.chunks(half * k).map(|x| Tokens::new(x, k, &Pool::single()));
        let halves: Vec<Tokens> = halves.collect();
        for (whole, [upper, lower]) in [
            (Input::from(&case.x), [Input::from(&case.x[..half * k]), Input::from(&case.x[half * k..])]),
            (Input::from(&tokens), [Input::from(&halves[0]), Input::from(&halves[1])]),
        ] {
            for (gated, outputs) in [(false, n), (true, n / 2)] {
                let run = |x: Input<'_>, first: usize, rows: usize| {
                    let mut y = vec![f32::NAN; rows * outputs];
                    let residual = Some(&residual[first * outputs..][..rows * outputs]);
                    let epilogue = Epilogue { gated, residual, ..Epilogue::default() };
                    (kernel.run)(&Product { x, ..case.product(rows, epilogue) }, &mut y, &Pool::new(2))
                        .expect("lengths fit");
                    y
                };
                let parts = [run(upper, 0, half), run(lower, half, half)].concat();
                assert!(run(whole, 0, rows) == parts, "{what}, gated: {gated}: all rows at once and in two halves");
            }
        }
    });
}

/// What is left over of many rows may be few, which have a kernel of their own.
#[test]
fn a_last_block_may_have_few_rows() {
    let (n, k, group, block) = (36, 128, 128, 1024);
    each(k, group, |format, kernel, what| {
        if kernel.accuracy == Accuracy::Single {
            return;
        }
        let mut case = Case::new(format, n, k, group, |_| 0.0);
        case.x = ((0..(block + 20) * k).map(heavy_tailed(29))).collect();
        for few in [1, 3, 9, 13, 16, 17] {
            let y = case.run(kernel, block + few, Epilogue::default(), &Pool::new(2));
            let rest =
                Product { x: case.x[block * k..(block + few) * k].into(), ..case.product(few, Epilogue::default()) };
            let mut alone = vec![f32::NAN; few * n];
            (kernel.run)(&rest, &mut alone, &Pool::single()).expect("lengths fit");
            assert!(y[block * n..] == alone, "{what}: {few} rows after a block and alone");
        }
    });
}

/// Activations that are rounded already are multiplied as they are, by every format.
#[test]
fn rounded_activations_are_not_rounded_again() {
    let (n, k, group) = (35, 328, 64);
    let pool = Pool::new(2);
    each(k, group, |format, kernel, what| {
        let mut case = Case::new(format, n, k, group, heavy_tailed(19));
        let tokens = Tokens::new(&case.x, k, &pool);
        let run = |x: Input<'_>, rows: usize| {
            let mut y = vec![f32::NAN; rows * n];
            let product = Product { x, ..case.product(rows, Epilogue::default()) };
            (kernel.run)(&product, &mut y, &pool).expect("lengths fit");
            y
        };
        let y = run((&tokens).into(), MOST_ROWS);
        if format.scheme == Scheme::WeightActivation {
            assert_eq!(y, run((&case.x).into(), MOST_ROWS), "{what}: rounded before or by the product");
        }
        if kernel.name.starts_with("int") {
            // By the same kernels: five lines or more, up to eight.
            let [few, some] = [5, 7].map(|rows| run((&Tokens::new(&case.x[..rows * k], k, &pool)).into(), rows));
            assert_eq!(few, some[..5 * n], "{what}: rows among others");
        }
        case.x = tokens.to_f32();
        for (i, &y) in y.iter().enumerate() {
            let (wanted, tolerance) = case.exact(i / n, i % n, Accuracy::Single);
            let error = (f64::from(y) - wanted).abs();
            assert!(error <= tolerance, "{what}, output {i}: {y} for {wanted}, at most {tolerance:e} off");
        }
        let wrong = Tokens::new(&case.x[..2 * (k - 1)], k - 1, &pool);
        let product = Product { x: (&wrong).into(), ..case.product(2, Epilogue::default()) };
        let refused = (kernel.run)(&product, &mut vec![0.0; 2 * n], &pool);
        assert!(matches!(refused, Err(Error::Length { .. })), "{what}: rows of another length");
    });
}
