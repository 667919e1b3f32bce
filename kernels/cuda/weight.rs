//! Weights on a device, and products with few token rows.

use std::iter;
use std::ops::Range;
use std::sync::Arc;

use super::driver::{Device, Grid, Kernel, Memory, Stream};
use super::error::DeviceError;
use super::middle::{MIDDLE_ROWS, Middle};
use super::norm::DeviceTokens;
use super::rows::ToRows;
use super::spread::{Spread, TileCost, WARPS};
use super::tiles::{Geometry, TILE_CHANNELS, TILE_K};
use super::wide::{WIDE_ROWS, Way, Wide};
use super::workspace::Workspace;
use crate::dense::convert::FloatType;
use crate::error::{Error, length};
use crate::format::{Format, Stored};

/// Token rows that the kernels take at once that a [`Spread`] deals out.
pub const ROWS_AT_ONCE: usize = 16;

/// Threads of a block.
const THREADS: u32 = 32 * WARPS as u32;

/// What a token row is carried in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Element {
    /// Half precision.
    F16,
    /// bfloat16.
    Bf16,
}

impl Element {
    /// Both.
    pub const ALL: [Element; 2] = [Element::F16, Element::Bf16];

    fn name(self) -> &'static str {
        match self {
            Element::F16 => "f16",
            Element::Bf16 => "bf16",
        }
    }
}

/// A weight in a device's memory, arranged for its kernels.
#[derive(Clone, Debug)]
pub struct DeviceWeight {
    format: &'static Format,
    n: usize,
    k: usize,
    gated: bool,
    row_tiles: usize,
    k_tiles: usize,
    /// Of a row of a tile.
    groups: usize,
    tiles: Memory,
    /// For 1 to [`ROWS_AT_ONCE`] token rows.
    spreads: Arc<[Spread]>,
    /// `[n]`, f32, if a scale belongs to an output channel.
    scales: Option<Memory>,
    /// By element, and for 8 or 16 token rows.
    kernels: [[Kernel; 2]; 2],
    pub(super) to_rows: ToRows,
    pub(super) middle: Middle,
    /// Or why not.
    pub(super) wide: Result<Wide, Arc<str>>,
}

/// Rows of numbers in a device's memory.
#[derive(Clone, Copy, Debug)]
pub struct DeviceRows<'a> {
    /// Where they are.
    pub memory: &'a Memory,
    /// From one row to the next, in numbers.
    pub stride: usize,
}

/// The activations of a product.
#[derive(Clone, Copy, Debug)]
pub enum DeviceInput<'a> {
    /// `[rows, k]` of 16-bit numbers, at multiples of 16 bytes, whole groups of 8 to a row (what lies behind k is not looked at): for
    /// weights alone.
    Numbers(DeviceRows<'a>),
    /// Rounded to bytes, as by [`Norms`](super::Norms): for weights and activations.
    Tokens(DeviceTokens<'a>),
}

impl<'a> From<DeviceRows<'a>> for DeviceInput<'a> {
    fn from(rows: DeviceRows<'a>) -> DeviceInput<'a> {
        DeviceInput::Numbers(rows)
    }
}

impl<'a> From<DeviceTokens<'a>> for DeviceInput<'a> {
    fn from(tokens: DeviceTokens<'a>) -> DeviceInput<'a> {
        DeviceInput::Tokens(tokens)
    }
}

impl<'a> DeviceInput<'a> {
    /// Its rows, the bytes of a number, and the scales of the rows.
    pub(super) fn parts(self) -> (DeviceRows<'a>, usize, Option<&'a Memory>) {
        match self {
            DeviceInput::Numbers(rows) => (rows, 2, None),
            DeviceInput::Tokens(DeviceTokens { codes, scales }) => (codes, 1, Some(scales)),
        }
    }
}

/// What a device computes: `y = x W^T`, and what its epilogue makes of it, in the order bias, gate, residual.
///
/// With weights alone, `y = sum_g s_g (sum_k q x - z_g sum_k x)`: an infinite activation makes its row not a number, as the formula
/// says (with more than 16 rows, where `q - z` comes first, infinite or not a number), and leaves the other rows alone.
#[derive(Clone, Copy, Debug)]
pub struct DeviceProduct<'a> {
    /// Activations, of the kind that the weight's format multiplies.
    pub x: DeviceInput<'a>,
    /// Token rows; 0 is no work. The weight is read once for every 16 of them; or, where there are more and no spread is
    /// given, for every 64. [`DeviceWeight::product_of_any`] is for more.
    pub rows: usize,
    /// Of `x` if that is numbers, `bias`, `residual`, and of `y` unless `single`.
    pub element: Element,
    /// `[n]`.
    pub bias: Option<&'a Memory>,
    /// `[rows, outputs]`, spaced as `y`; may be `y` itself if that is not `single`.
    pub residual: Option<&'a Memory>,
    /// `[rows, outputs]`.
    pub y: DeviceRows<'a>,
    /// Whether `y` is f32.
    pub single: bool,
    /// How the product is dealt to the device, [`ROWS_AT_ONCE`] token rows at a time; `None`: as is thought best for that many rows.
    /// With the same spread, a token row is the same bits alone and among others.
    pub spread: Option<Spread>,
}

/// The one parameter of a kernel: `Repack` in `repack.cuh`.
#[repr(C)]
struct Repack {
    codes: u64,
    scales: u64,
    zero_points: u64,
    tiles: u64,
    n: i32,
    k: i32,
    group: i32,
    groups: i32,
    zero_bytes: i32,
    k_tiles: i32,
    scale_type: i32,
    gated: i32,
}

/// The one parameter of a kernel: `Small` in `small.cuh`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Arguments {
    tiles: u64,
    x: u64,
    bias: u64,
    residual: u64,
    y: u64,
    partial: u64,
    arrived: u64,
    rows: i32,
    k: i32,
    n: i32,
    x_stride: i32,
    y_stride: i32,
    k_tiles: i32,
    together_log: i32,
    units_each: i32,
    units_left: i32,
    gated: i32,
    single: i32,
}

/// The one parameter of a kernel: `Integer` in `integer.cuh`.
#[repr(C)]
pub(super) struct IntegerArguments {
    pub(super) few: Arguments,
    pub(super) codes: u64,
    pub(super) token_scales: u64,
    pub(super) scales: u64,
    brain: i32,
}

impl DeviceWeight {
    /// Arranges a stored weight and copies it to the stream's device; with `gated`, `[gate; up]`, of which a product makes
    /// `silu(gate) * up`.
    ///
    /// # Errors
    ///
    /// If the bytes are none of the format, there is no kernel for it, the kernels cannot be loaded, or memory is short.
    pub fn load(
        stream: &Stream,
        format: &'static Format,
        stored: &Stored<'_>,
        gated: bool,
    ) -> Result<DeviceWeight, DeviceError> {
        let layout = format.tiles.ok_or(Error::Device { format: format.name })?;
        let &Stored { n, k, group, .. } = stored;
        for (what, size) in [("the number of output channels", n), ("the number of input channels", k)] {
            if size == 0 || size > MOST_CHANNELS {
                return Err(DeviceError::Shape { what, found: size, expected: format!("1 to {MOST_CHANNELS}") });
            }
        }
        // Everything is looked at here: kernels trust what they read.
        let geometry = Geometry::of(format, stored, gated)?;
        if geometry.groups == 0 && k > MOST_SUMMED {
            let expected = format!("up to {MOST_SUMMED}: longer sums of bytes may overflow");
            return Err(DeviceError::Shape { what: "the number of input channels", found: k, expected });
        }
        let device = stream.device();
        let kernel = |element: Element, rows: usize| {
            let (name, element) = (format.name, element.name());
            let name = match geometry.groups {
                0 => format!("{name}_{rows}"),
                groups => format!("{name}a16_{element}_{rows}_g{}", TILE_K / groups),
            };
            device.kernel(layout.unit, &name)
        };
        let both = |element| Ok::<_, DeviceError>([kernel(element, 8)?, kernel(element, 16)?]);
        let kernels = [both(Element::F16)?, both(Element::Bf16)?];
        let to_rows = ToRows::load(device, layout.unit, format.name, geometry.groups > 0, layout.order)?;
        let Geometry { row_tiles, k_tiles, groups, .. } = geometry;
        let tile = geometry.tile_bytes();
        let codes = tile - 4 * TILE_CHANNELS * groups;
        let middle = Middle::load(device, layout.unit, format.name, &geometry, codes)?;
        let tiles = device.memory(geometry.bytes())?;
        // Kernels for 16 rows may take the registers of a multiprocessor for one block.
        let beside = |many: usize| {
            let [f16, bf16] = [&kernels[0][many], &kernels[1][many]].map(|one| one.side_by_side(THREADS, shared(many)));
            Ok::<_, DeviceError>(f16?.min(bf16?))
        };
        let beside = [[beside(0)?; 8], [beside(1)?; 8]];
        let beside = beside.as_flattened();
        let activations = if groups == 0 { TILE_K } else { 2 * TILE_K };
        let cost = TileCost { bytes: tile, activations, instructions: 0 };
        let spreads = Spread::best(row_tiles, k_tiles, cost, device.about().multiprocessors, beside).into();
        let weight = DeviceWeight {
            format,
            n,
            k,
            gated,
            row_tiles,
            k_tiles,
            groups,
            tiles,
            spreads,
            scales: None,
            kernels,
            to_rows,
            middle,
            wide: Wide::load(device, layout, format.name, groups)?,
        };
        let placed = |bytes: &[u8]| {
            let memory = device.memory(bytes.len())?;
            stream.write(&memory, bytes)?;
            Ok::<_, DeviceError>(memory)
        };
        let codes = placed(stored.b)?;
        let of_channels = weight.groups == 0;
        let (scale_type, scale_bytes) = match of_channels {
            true => (FloatType::F32, stored.scales.to_f32().iter().flat_map(|scale| scale.to_le_bytes()).collect()),
            false => stored.scales.to_bytes(),
        };
        let scales = placed(&scale_bytes)?;
        let zero_points = stored.zero_points.map(placed).transpose()?;
        let groups = k.div_ceil(group);
        let number = |number: usize| i32::try_from(number).expect("channels are not so many");
        let arguments = Repack {
            codes: codes.at(),
            scales: scales.at(),
            zero_points: zero_points.as_ref().map_or(0, Memory::at),
            tiles: weight.tiles.at(),
            n: number(n),
            k: number(k),
            group: number(group),
            groups: number(groups),
            zero_bytes: number((groups * format.zero_point_bits as usize).div_ceil(8)),
            k_tiles: number(k_tiles),
            scale_type: match scale_type {
                FloatType::F16 => 1,
                FloatType::BF16 => 2,
                FloatType::F32 | FloatType::F64 => 0,
            },
            gated: i32::from(gated),
        };
        let repack = device.kernel(layout.unit, &format!("{}_repack", format.name))?;
        // A word for each thread and bit of a code, where it has groups.
        let shared = if of_channels { 0 } else { (tile - 4 * TILE_CHANNELS * weight.groups) as u32 };
        let grid = Grid { blocks: [k_tiles as u32, row_tiles as u32], threads: 128, shared };
        let uses = [Some(&codes), Some(&scales), zero_points.as_ref(), Some(&weight.tiles)];
        let uses: Vec<&Memory> = uses.into_iter().flatten().collect();
        // SAFETY: `Repack` is the parameter of these kernels, field by field; the parts are as long as the shape says, which
        // `Geometry::of` has checked, and the tiles as it says.
        #[expect(unsafe_code, reason = "kernels trust their arguments")]
        unsafe {
            stream.launch(&repack, grid, &arguments, &uses)?;
        }
        // Products read the tiles before they wait for what is ahead of them.
        stream.synchronize()?;
        Ok(DeviceWeight { scales: of_channels.then_some(scales), ..weight })
    }

    /// The same weight elsewhere in the device's memory, as benches need it.
    ///
    /// # Errors
    ///
    /// If memory is short.
    pub fn copy(&self, stream: &Stream) -> Result<DeviceWeight, DeviceError> {
        let tiles = stream.device().memory(self.tiles.bytes())?;
        stream.copy(&self.tiles, &tiles)?;
        stream.synchronize()?;
        Ok(DeviceWeight { tiles, ..self.clone() })
    }

    /// Its format.
    pub fn format(&self) -> &'static Format {
        self.format
    }

    /// Input channels.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Outputs of a token row: output channels, or half of them with a gate.
    pub fn outputs(&self) -> usize {
        if self.gated { self.n / 2 } else { self.n }
    }

    /// Bytes that it takes, which a product reads once.
    pub fn bytes(&self) -> usize {
        self.tiles.bytes()
    }

    /// How often a product with that many token rows reads it, if no spread is given.
    pub fn passes(&self, rows: usize, way: Way) -> usize {
        match way {
            Way::Sliced => self.slices(rows, None).count(),
            Way::Wide => rows.div_ceil(WIDE_ROWS),
            Way::Blas => 1,
        }
    }

    /// The token rows that kernels take one after another, and whether it is the kernel for more than 16 that takes them.
    fn slices(&self, rows: usize, spread: Option<Spread>) -> impl Iterator<Item = (Range<usize>, bool)> {
        let mut next = 0;
        iter::from_fn(move || {
            let (first, left) = (next, rows - next);
            let middle = left > ROWS_AT_ONCE && spread.is_none();
            next += left.min(if middle { MIDDLE_ROWS } else { ROWS_AT_ONCE });
            (left > 0).then_some((first..next, middle))
        })
    }

    /// Its tiles, as [`Tiles`](super::Tiles) arranges them on the host.
    pub fn tiles(&self) -> &Memory {
        &self.tiles
    }

    /// How a product with that many token rows is dealt to the device unless it is told otherwise; of more than [`ROWS_AT_ONCE`], the
    /// slices of 64 or less are.
    pub fn spread(&self, rows: usize) -> Spread {
        self.spreads.get(rows.saturating_sub(1)).copied().unwrap_or(self.middle.spread)
    }

    /// What else might be tried.
    pub fn spreads(&self, device: &Device) -> Vec<Spread> {
        Spread::candidates(self.row_tiles, self.k_tiles, 2 * device.about().multiprocessors)
    }

    /// Puts `y = x W^T` into the stream.
    ///
    /// # Errors
    ///
    /// If memory is too small, not aligned, another device's, overlaps what it must not, or was not made for this stream; if
    /// the driver refuses the launch.
    pub fn product(
        &self,
        stream: &Stream,
        product: &DeviceProduct<'_>,
        workspace: &mut Workspace,
    ) -> Result<(), DeviceError> {
        let &DeviceProduct { x, rows, residual, y, single, spread, .. } = product;
        if rows == 0 {
            return Ok(());
        }
        self.check(stream, product)?;
        let spread_of = |slice: &Range<usize>| spread.unwrap_or_else(|| self.spread(slice.len()));
        for (slice, middle) in self.slices(rows, spread) {
            let (partial, arrived) = match middle {
                true => self.middle_workspace(),
                false => self.workspace(self.checked(spread_of(&slice))?),
            };
            workspace.check(stream, partial, arrived)?;
        }
        for (slice, middle) in self.slices(rows, spread) {
            let behind = |memory: &Memory, bytes: usize| memory.part(slice.start * bytes..memory.bytes());
            let (rows_of_x, number, scales) = x.parts();
            let own_x = behind(rows_of_x.memory, number * rows_of_x.stride)?;
            let own_scales = scales.map(|scales| behind(scales, 4)).transpose()?;
            let own_x = DeviceRows { memory: &own_x, ..rows_of_x };
            let own_residual = residual.map(|residual| behind(residual, 2 * y.stride)).transpose()?;
            let own_y = behind(y.memory, if single { 4 } else { 2 } * y.stride)?;
            let some = DeviceProduct {
                x: match &own_scales {
                    Some(scales) => DeviceTokens { codes: own_x, scales }.into(),
                    None => own_x.into(),
                },
                rows: slice.len(),
                residual: own_residual.as_ref(),
                y: DeviceRows { memory: &own_y, ..y },
                ..*product
            };
            match middle {
                true => self.product_of_some(stream, &some, workspace)?,
                false => self.few(stream, &some, spread_of(&slice), workspace)?,
            }
        }
        Ok(())
    }

    /// A product with so few rows that a kernel takes them at once; it was checked.
    fn few(
        &self,
        stream: &Stream,
        product: &DeviceProduct<'_>,
        spread: Spread,
        workspace: &mut Workspace,
    ) -> Result<(), DeviceError> {
        let &DeviceProduct { rows, element, .. } = product;
        let many = usize::from(rows > 8);
        let kernel = &self.kernels[usize::from(element == Element::Bf16)][many];
        let few = self.dealt(product, spread, workspace);
        let grid = Grid { blocks: [spread.blocks as u32, 1], threads: THREADS, shared: shared(many) as u32 };
        let mut uses = self.uses(product);
        uses.extend(workspace.memory());
        // SAFETY: the arguments are the parameters of these kernels, field by field; `check` has seen that all memory is as large as
        // they expect, and all of it is in `uses`.
        #[expect(unsafe_code, reason = "kernels trust their arguments")]
        unsafe {
            match self.integers(few, product) {
                Some(arguments) => stream.launch(kernel, grid, &arguments, &uses),
                None => stream.launch(kernel, grid, &few, &uses),
            }
        }
    }

    /// What kernels with activations of 8 bits are told of a checked product; `None` if they are of 16.
    pub(super) fn integers(&self, few: Arguments, product: &DeviceProduct<'_>) -> Option<IntegerArguments> {
        let (_, _, token_scales) = product.x.parts();
        let (scales, token_scales) = self.scales.as_ref().zip(token_scales)?;
        let (codes, token_scales, scales) = (few.x, token_scales.at(), scales.at());
        let brain = i32::from(product.element == Element::Bf16);
        Some(IntegerArguments { few: Arguments { x: 0, ..few }, codes, token_scales, scales, brain })
    }

    /// What kernels are told of a checked product.
    pub(super) fn dealt(&self, product: &DeviceProduct<'_>, spread: Spread, workspace: &Workspace) -> Arguments {
        let number = |number: usize| i32::try_from(number).expect("checked");
        let (units, [partial, arrived]) = (self.units(spread.together), workspace.memory());
        Arguments {
            partial: partial.at(),
            arrived: arrived.at(),
            together_log: number(spread.together.ilog2() as usize),
            units_each: number(units / spread.blocks),
            units_left: number(units % spread.blocks),
            ..self.arguments(product)
        }
    }

    /// What kernels are told of a checked product, but for how it is dealt out.
    pub(super) fn arguments(&self, product: &DeviceProduct<'_>) -> Arguments {
        let &DeviceProduct { x, rows, bias, residual, y, single, .. } = product;
        let (x, ..) = x.parts();
        let address = |memory: Option<&Memory>| memory.map_or(0, Memory::at);
        let number = |number: usize| i32::try_from(number).expect("checked");
        Arguments {
            tiles: self.tiles.at(),
            x: x.memory.at(),
            bias: address(bias),
            residual: address(residual),
            y: y.memory.at(),
            partial: 0,
            arrived: 0,
            rows: number(rows),
            k: number(self.k),
            n: number(self.n),
            x_stride: number(x.stride),
            y_stride: number(y.stride),
            k_tiles: number(self.k_tiles),
            together_log: 0,
            units_each: 0,
            units_left: 0,
            gated: i32::from(self.gated),
            single: i32::from(single),
        }
    }

    /// The memory of a product.
    pub(super) fn uses<'a>(&'a self, product: &DeviceProduct<'a>) -> Vec<&'a Memory> {
        let &DeviceProduct { x, bias, residual, y, .. } = product;
        let (x, _, token_scales) = x.parts();
        let scales = self.scales.as_ref();
        let uses = [Some(&self.tiles), scales, Some(x.memory), token_scales, bias, residual, Some(y.memory)];
        uses.into_iter().flatten().collect()
    }

    /// Of a row of a tile; 0 if scales belong to output channels, and products are of integers.
    pub(super) fn groups(&self) -> usize {
        self.groups
    }

    /// Output channels: those of a gate and those that it multiplies.
    pub(super) fn n(&self) -> usize {
        self.n
    }

    /// Whether it is `[gate; up]`.
    pub(super) fn gated(&self) -> bool {
        self.gated
    }

    /// Whether products are of integers: scales belong to output channels, and activations are bytes.
    pub(super) fn of_integers(&self) -> bool {
        self.scales.is_some()
    }

    /// Tiles along the output channels.
    pub(super) fn row_tiles(&self) -> usize {
        self.row_tiles
    }

    /// Tiles along the input channels.
    pub(super) fn k_tiles(&self) -> usize {
        self.k_tiles
    }

    /// The spread, if there is such a one.
    pub(super) fn checked(&self, spread: Spread) -> Result<Spread, DeviceError> {
        if !matches!(spread.together, 1 | 2 | 4 | 8) {
            let expected = "1, 2, 4 or 8".to_owned();
            return Err(DeviceError::Shape { what: "rows of tiles of a band", found: spread.together, expected });
        }
        let units = self.units(spread.together);
        if spread.blocks == 0 || spread.blocks > units {
            let expected = format!("1 to {units}");
            return Err(DeviceError::Shape { what: "the number of blocks", found: spread.blocks, expected });
        }
        Ok(spread)
    }

    /// `Ok` if a kernel may trust the arguments.
    pub(super) fn check(&self, stream: &Stream, product: &DeviceProduct<'_>) -> Result<(), DeviceError> {
        let &DeviceProduct { x, rows, bias, residual, y, single, .. } = product;
        stream.own("the weight", &self.tiles)?;
        let outputs = self.outputs();
        let size = if single { 4 } else { 2 };
        let (x, number, token_scales) = x.parts();
        if token_scales.is_some() != self.scales.is_some() {
            let (found, expected) = if number == 1 { (8, "16, numbers") } else { (16, "8, rounded to bytes") };
            let what = "the number of bits of an activation";
            return Err(DeviceError::Shape { what, found, expected: format!("{expected}, for {}", self.format.name) });
        }
        let whole = self.k.next_multiple_of(16 / number);
        stride("the stride of x", x.stride, whole, 16 / number, rows)?;
        if let Some(scales) = token_scales {
            memory(stream, "the scales of x", scales, 4 * rows, 4)?;
        }
        stride("the stride of y", y.stride, outputs, 1, rows)?;
        let in_all = |stride: usize, last: usize, size: usize| ((rows - 1) * stride + last) * size;
        memory(stream, "x", x.memory, in_all(x.stride, whole, number), 16)?;
        memory(stream, "y", y.memory, in_all(y.stride, outputs, size), size)?;
        if let Some(bias) = bias {
            memory(stream, "the bias", bias, 2 * self.n, 2)?;
        }
        if let Some(residual) = residual {
            memory(stream, "the residual", residual, in_all(y.stride, outputs, 2), 2)?;
        }
        let in_place = |residual: &Memory| !single && residual.start() == y.memory.start();
        let others =
            [Some(x.memory), token_scales, bias, residual.filter(|residual| !in_place(residual)), Some(&self.tiles)];
        if others.into_iter().flatten().any(|other| other.overlaps(y.memory)) {
            let expected = "memory that no input lies in, or that of the residual from its first byte on".to_owned();
            return Err(DeviceError::Shape { what: "the first byte of y", found: y.memory.start(), expected });
        }
        Ok(())
    }

    /// Bytes of partial sums, and of counts, for any number of rows.
    pub(super) fn workspace(&self, spread: Spread) -> (usize, usize) {
        if !self.meets(spread) {
            return (0, 0);
        }
        let bands = self.row_tiles.div_ceil(spread.together);
        let partial = length(&[spread.blocks + bands, spread.together, TILE_CHANNELS * ROWS_AT_ONCE, 4]);
        (partial, 4 * bands)
    }

    /// Whether blocks share a band.
    pub(super) fn meets(&self, spread: Spread) -> bool {
        spread.meets(self.row_tiles, self.k_tiles)
    }

    /// What is dealt to blocks: see [`Spread`].
    pub(super) fn units(&self, together: usize) -> usize {
        self.row_tiles.div_ceil(together) * self.k_tiles
    }
}

/// Bytes of shared memory of a kernel for 8 token rows, or for 16: `small_shared` in `small.cuh`.
fn shared(many: usize) -> usize {
    WARPS * TILE_CHANNELS * 8 * (1 + many) * 4 + 16
}

/// The most input or output channels: a grid has no more blocks in its second direction, of 32 channels each.
const MOST_CHANNELS: usize = 65535 * TILE_CHANNELS;

/// The most input channels of weights whose products are summed as integers: below 2^31 over 128 times 128, whole tiles.
const MOST_SUMMED: usize = 130_944;

pub(super) fn stride(
    what: &'static str,
    found: usize,
    least: usize,
    multiple: usize,
    rows: usize,
) -> Result<(), DeviceError> {
    let most = i32::MAX as usize / rows;
    if found >= least && found <= most && found.is_multiple_of(multiple) {
        return Ok(());
    }
    let every = if multiple == 1 { "a number".to_owned() } else { format!("a multiple of {multiple}") };
    Err(DeviceError::Shape { what, found, expected: format!("{every} from {least} to {most}") })
}

pub(super) fn memory(
    stream: &Stream,
    what: &'static str,
    memory: &Memory,
    bytes: usize,
    alignment: usize,
) -> Result<(), DeviceError> {
    stream.own(what, memory)?;
    if memory.bytes() < bytes {
        let expected = format!("{bytes} bytes or more");
        return Err(DeviceError::Shape { what, found: memory.bytes(), expected });
    }
    // What is allocated begins at a multiple of 256.
    let start = memory.start();
    if start.is_multiple_of(alignment) { Ok(()) } else { Err(DeviceError::Unaligned { what, start, alignment }) }
}
