//! Weights as the matrix kernels read them: records of 16 rows, in the order of the tensor cores'
//! fragments.
//!
//! GGUF's blocks of 17, 18, 22 or 34 bytes can't be loaded 16 bytes at a time. At load time a kernel
//! turns each tensor into records: 16 rows by 64 columns (256 for the K formats, whose blocks are
//! that long), first the codes in the order in which a warp wants them, then the scales. A record
//! has exactly as many bytes as the blocks it came from. Rows are padded to 16 and columns to whole
//! records, with zeroes.
//!
//! A warp takes 64 columns of a record at a time, a *part*: two k = 32 steps of an 8-bit product.
//! Lane = 4 g + t holds rows g and g + 8; register r of a step's fragment holds row g + 8 (r % 2),
//! columns 16 (r / 2) + 4 t + i in byte i.

pub mod float;
pub mod k_quants;
pub mod k_sixteens;
pub mod legacy;
pub mod planes;

use crate::gpu::{self, Global, SharedArray, U32x2, U32x4};

/// Rows of a record.
pub const TILE_ROWS: u32 = 16;
/// Columns of a part.
pub const PART_COLS: u32 = 64;
/// Columns that one k = 32 product takes; an activation scale covers as many.
pub const STEP_COLS: u32 = 32;

/// A tensor's GGUF bytes, seen from one record: 16 rows from `first_row` on.
#[derive(Clone, Copy)]
pub struct Raw {
    /// The rows' blocks, one after another.
    pub bytes: Global<u8>,
    /// Rows that exist.
    pub n_rows: u32,
    /// Blocks of a row.
    pub row_blocks: u32,
    /// The record's first row.
    pub first_row: u32,
    /// Bytes of a block.
    pub block_bytes: u32,
}

impl Raw {
    /// Byte `i` of a block; 0 outside the tensor.
    #[inline(always)]
    pub fn byte(self, row: u32, block: u32, i: u32) -> u32 {
        let row = self.first_row + row;
        if row >= self.n_rows || block >= self.row_blocks {
            return 0;
        }
        let at = row as usize * self.row_blocks as usize + block as usize;
        self.bytes.get(at * self.block_bytes as usize + i as usize) as u32
    }

    /// Bytes `i` and `i + 1`, little endian.
    #[inline(always)]
    pub fn half(self, row: u32, block: u32, i: u32) -> u32 {
        self.byte(row, block, i) | self.byte(row, block, i + 1) << 8
    }

    /// Four bytes from `i` on, little endian.
    #[inline(always)]
    pub fn word(self, row: u32, block: u32, i: u32) -> u32 {
        self.half(row, block, i) | self.half(row, block, i + 2) << 16
    }
}

/// The rows' order among the scales: a lane finds both of its rows in one load.
const fn row_of_place(place: u32) -> u32 {
    place / 2 + place % 2 * 8
}

/// Where row `row` stands among the scales.
const fn place_of_row(row: u32) -> u32 {
    row % 8 * 2 + row / 8
}

/// The scales of one lane's two rows, for one group of columns: `w = d * code + m`.
#[derive(Clone, Copy)]
pub struct Scales {
    /// Of rows g and g + 8; the code is without the format's offset.
    pub d: [f32; 2],
    /// Added to each weight; 0 where the format has none.
    pub m: [f32; 2],
}

/// The sums of one lane: its two rows, for the token in its columns.
pub type Sums = [f32; 2];

/// Groups that a lone token's products take together, and the most that a part has.
pub const CHAIN_GROUPS: usize = 4;

/// One 32-column step of a token's activations, as one lane holds it.
#[derive(Clone, Copy)]
pub struct Step {
    /// The codes: the lane's b fragment.
    pub codes: [u32; 2],
    /// The token's scale (`fixed16`).
    pub scale: f32,
    /// The sum of the token's codes.
    pub sum: u32,
    /// The same over each half of the step.
    pub half_sums: [u32; 2],
}

/// Four groups of columns of a lone token, a *chain*, as one lane holds them. One token needs two of the
/// eight columns of a product, so that each group gets two of its own: lane 4 g + t brings piece g % 2
/// of group g / 2, and zeroes for the others, and gets the sums of group t. What has to be done for each
/// group is then done for four at once.
#[derive(Clone, Copy)]
pub struct LoneGroup {
    /// The codes of group g / 2; of 16 columns it is the first word alone.
    pub codes: [u32; 2],
    /// The scale of group t (`fixed16`).
    pub scale: f32,
    /// The sum of its codes.
    pub sum: u32,
}

impl LoneGroup {
    /// Whether the codes are of group `group`; else the lane's share of its fragment is zero.
    #[inline(always)]
    fn is_of(self, group: usize) -> bool {
        gpu::lane() / 8 == group as u32
    }
}

/// What a lane multiplies by in place of a select: products of one token wait for the machine's logic unit, and
/// its multiplier has little else to do. 1 for the group whose codes the lane has, 0 for the others, whose share of
/// a fragment is zero.
#[derive(Clone, Copy)]
pub struct Factors([u32; CHAIN_GROUPS]);

impl Factors {
    /// The lane's; made once, since the compiler must not know the values.
    #[inline(always)]
    pub fn of_lane() -> Factors {
        let group = gpu::lane() / 8;
        Factors([0, 1, 2, 3].map(|i| gpu::anew((group == i) as u32)))
    }

    /// The lane's share of a fragment of group `group`, of which it has the codes or not.
    #[inline(always)]
    fn of_group(&self, codes: [u32; 2], group: usize) -> [u32; 2] {
        codes.map(|word| word * self.0[group])
    }
}

/// Records where a lane reads them: in device memory, or in a block's shared memory.
pub trait Records: Copy {
    /// Those from unit `start` of 16 bytes on.
    fn from(self, start: usize) -> Self;
    /// Unit `i` of 16 bytes.
    fn quad(self, i: usize) -> U32x4;
    /// Unit `i` of 8 bytes, from unit `start` on.
    fn pair(self, start: usize, i: usize) -> U32x2;
    /// Word `i`, from word `start` on.
    fn word(self, start: usize, i: usize) -> u32;
}

macro_rules! records {
    ($view:ident, $index:ty, $load:ident) => {
        impl Records for $view<U32x4> {
            #[inline(always)]
            #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
            fn from(self, start: usize) -> Self {
                self.from(start as $index)
            }
            #[inline(always)]
            #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
            fn quad(self, i: usize) -> U32x4 {
                self.$load(i as $index)
            }
            #[inline(always)]
            #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
            fn pair(self, start: usize, i: usize) -> U32x2 {
                self.cast::<U32x2>().from(start as $index).$load(i as $index)
            }
            #[inline(always)]
            #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
            fn word(self, start: usize, i: usize) -> u32 {
                self.cast::<u32>().from(start as $index).$load(i as $index)
            }
        }
    };
}
records!(Global, usize, stream);
records!(SharedArray, u32, get);

/// Copies `n_units` units, up to 128, from unit `first` of `from` on, later, to unit `to_first` of `to` and behind it.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn copy_units(
    from: Global<U32x4>,
    first: u32,
    to: SharedArray<U32x4>,
    to_first: u32,
    n_units: u32,
) {
    unroll!(i < 4, {
        let unit = i as u32 * gpu::WARP + gpu::lane();
        if unit < n_units {
            gpu::copy_later(from, (first + unit) as usize, to, to_first + unit);
        }
    });
}

/// A weight format in records.
pub trait TileFormat: 'static {
    /// Columns of a record: 64 or 256.
    const RECORD_COLS: u32;
    /// Words of a record, a multiple of 4.
    const RECORD_WORDS: u32;
    /// Groups of columns that a part has, each with scales and sums of its own: two of 32, or four of 16.
    const GROUPS: usize;
    /// Matrix instructions that a group of columns takes.
    const PRODUCTS: u32 = 1;
    /// Tiles that a warp of the product of four columns has, where it has no ring: 2, or 1 where there are no registers for
    /// the sums.
    const X16_TILES: u32 = 1;
    /// Parts of activations that it asks for ahead then: 1, or 0 where there are no registers for it.
    const X16_AHEAD: usize = 0;
    /// Units of 16 bytes that a part takes on its way through shared memory in products of several tokens
    /// (`matmul::ring`), or 0 where what is under way is in registers.
    const SLOT_UNITS: u32 = 0;
    /// What the products come out in units of.
    const UNIT: f32 = 1.0;
    /// Blocks of the products of up to eight tokens that a multiprocessor holds: three, where a thread gets by with 80
    /// registers, so that the latency of one hides behind the others.
    const X8_BLOCKS: u32;
    /// Blocks of the product of four columns that a multiprocessor holds: two, where a thread gets by with
    /// 128 registers.
    const X16_BLOCKS: u32 = 2;
    /// Parts under way in a warp of a product with up to four tokens: as many as 128 registers hold.
    const AHEAD: usize = 4;
    /// The same where a warp has a share of the columns instead of two.
    const X4_WIDE_AHEAD: usize = Self::AHEAD;
    /// Chains under way in a warp of a product with one token.
    const LONE_AHEAD: usize = 4;
    /// The same where a thread may have all the registers there are.
    const DEEP_AHEAD: usize = 8;
    /// Chains of the gated product that are multiplied at once, so that a warp need not wait for one tensor core
    /// product at a time; a divisor of those under way. More take registers, and columns come out even less
    /// often.
    const TOGETHER: usize = 2;
    /// The same where `LONE_AHEAD` chains are under way.
    const LONE_TOGETHER: usize = 4;
    /// The same where `DEEP_AHEAD` are; 1 where twice as many warps share the columns, which hide each other's waits.
    const DEEP_TOGETHER: usize = 4;
    /// Chains under way in a warp of the experts' product: what 168 registers hold, but no more than half of those of
    /// 2880 columns.
    const EXPERTS_AHEAD: usize = Self::LONE_AHEAD;
    /// Chains under way in a warp of the product of one token with three tiles a block; more gain nothing.
    const WIDE_AHEAD: usize = 4;
    /// Share of a multiprocessor's memory that the products ask for as shared memory, in percent, though they need less:
    /// the same for each of them, and no more than leaves the cache room for what is under way.
    const SHARED_PERCENT: u32 = 50;
    /// Bytes of one GGUF block, and the columns in it.
    const BLOCK: (u32, u32);
    /// What a lane holds of a part's codes.
    type Codes: Copy;
    /// What it holds of the scales of its rows.
    type RowScales: Copy;

    /// Word `i` of the record whose first column is `first_col`, from the GGUF blocks.
    fn pack(raw: Raw, first_col: u32, i: u32) -> u32;

    /// The weight in row `row` and column `col` of a record, bit for bit as GGML decodes it.
    fn element(record: Global<u32>, row: u32, col: u32) -> f32;

    /// Loads the calling lane's share of part `part` of the record that begins at word `at` of
    /// `records`. What depends on the lane comes before what depends on the record: addresses then
    /// move by constants.
    fn load_codes(records: impl Records, at: usize, part: u32) -> Self::Codes;

    /// The same of the scales of the part's groups.
    fn load_scales(records: impl Records, at: usize, part: u32) -> Self::RowScales;

    /// Copies part `part` of the record that begins at `record` to shared memory, later: `SLOT_UNITS` units. As it stands
    /// here, with `load_part`, of formats whose records have one part.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn copy_part(record: Global<U32x4>, _part: u32, slot: SharedArray<U32x4>) {
        const { assert!(Self::SLOT_UNITS == 0 || Self::RECORD_COLS == PART_COLS) };
        const { assert!(Self::SLOT_UNITS <= 4 * gpu::WARP) };
        copy_units(record, 0, slot, 0, Self::SLOT_UNITS);
    }

    /// Does for all lanes what each would have to do else to `N` parts that `copy_part` has copied, each to its slot, where they
    /// are there for all; they were part `part` of their records. All 32 lanes must reach this call.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn make_ready<const N: usize>(_slot: impl Fn(u32) -> SharedArray<U32x4>, _part: u32) {}

    /// The lane's share of a part behind that.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
    fn load_part(slot: SharedArray<U32x4>) -> Part<Self>
    where
        Self: Sized,
    {
        Part { codes: Self::load_codes(slot, 0, 0), scales: Self::load_scales(slot, 0, 0) }
    }

    /// Adds the products of step `step` (0 or 1) of a part to its groups' sums. All 32 lanes must reach
    /// this call.
    fn accumulate(part: &Part<Self>, step: usize, x: Step, sums: &mut [Sums; CHAIN_GROUPS])
    where
        Self: Sized;

    /// Adds the products of a chain to the sums of the lane's group, to the bit as `accumulate` does: of `PARTS` parts,
    /// which have `CHAIN_GROUPS` groups at most. `scales` are of the part that has the lane's group, and `group` its number
    /// there. All 32 lanes must reach this call.
    fn accumulate_lone<const PARTS: usize>(
        codes: &[Self::Codes; PARTS],
        scales: &Self::RowScales,
        group: usize,
        x: LoneGroup,
        factors: &Factors,
        sums: &mut Sums,
    );
}

/// The calling lane's share of a part.
pub struct Part<F: TileFormat> {
    /// Of both steps.
    pub codes: F::Codes,
    /// Of all groups.
    pub scales: F::RowScales,
}

impl<F: TileFormat> Clone for Part<F> {
    #[inline(always)]
    fn clone(&self) -> Part<F> {
        *self
    }
}

impl<F: TileFormat> Copy for Part<F> {}

/// A format whose weights are small integers times a scale.
pub trait IntegerTile: TileFormat {
    /// Subtracted from each code.
    const OFFSET: i32;
    /// Whether weights have a minimum too.
    const HAS_MIN: bool;
    /// The codes of a step as signed bytes: the a fragment.
    fn fragment(codes: &Self::Codes, step: usize) -> [u32; 4];
    /// What is to be added to that fragment, in formats of two products.
    #[inline(always)]
    fn other_fragment(_codes: &Self::Codes, _step: usize) -> [u32; 4] {
        [0; 4]
    }
    /// The scales of one of the part's groups.
    fn scales(scales: &Self::RowScales, group: usize) -> Scales;
}

/// Adds the products of a step. All 32 lanes must reach this call.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
fn products<F: IntegerTile>(c: [i32; 4], codes: &F::Codes, step: usize, x: [u32; 2]) -> [i32; 4] {
    // Both before the first product: the compiler makes the tables of a look-up anew for each of them else.
    let fragments = (F::fragment(codes, step), F::other_fragment(codes, step));
    let c = gpu::mma_s8(c, fragments.0, x);
    if F::PRODUCTS == 2 { gpu::mma_s8(c, fragments.1, x) } else { c }
}

/// `accumulate` of the integer formats: exact integer products, then the scales.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub fn accumulate_integers<F: IntegerTile>(
    part: &Part<F>,
    step: usize,
    x: Step,
    sums: &mut [Sums; CHAIN_GROUPS],
) {
    let scales = |group| F::scales(&part.scales, group);
    if F::GROUPS == 4 {
        let [a0, a1, a2, a3] = F::fragment(&part.codes, step);
        let [first, second] = x.half_sums;
        let c = gpu::mma_s8_k16(without_offset(F::OFFSET, first), [a0, a1], x.codes[0]);
        add_scaled::<F>(c, first, x.scale, scales(2 * step), &mut sums[2 * step]);
        let c = gpu::mma_s8_k16(without_offset(F::OFFSET, second), [a2, a3], x.codes[1]);
        add_scaled::<F>(c, second, x.scale, scales(2 * step + 1), &mut sums[2 * step + 1]);
    } else {
        let c = products::<F>(without_offset(F::OFFSET, x.sum), &part.codes, step, x.codes);
        add_scaled::<F>(c, x.sum, x.scale, scales(step), &mut sums[step]);
    }
}

/// `accumulate_lone` of the integer formats.
#[inline(always)]
#[cfg_attr(not(target_arch = "nvptx64"), track_caller)]
pub fn accumulate_lone_integers<F: IntegerTile, const PARTS: usize>(
    codes: &[F::Codes; PARTS],
    scales: &F::RowScales,
    group: usize,
    x: LoneGroup,
    factors: &Factors,
    sums: &mut Sums,
) {
    let mut c = without_offset(F::OFFSET, x.sum);
    unroll!(i < 4, {
        let b = factors.of_group(x.codes, i);
        if F::GROUPS == 4 {
            let a = F::fragment(&codes[0], i / 2);
            c = gpu::mma_s8_k16(c, [a[i % 2 * 2], a[i % 2 * 2 + 1]], b[0]);
        } else if i / 2 < PARTS {
            c = products::<F>(c, &codes[i / 2], i % 2, b);
        }
    });
    add_scaled::<F>(c, x.sum, x.scale, F::scales(scales, group), sums);
}

/// What the products start from, so that they come out as if the codes had no offset: both rows of
/// the column with the lo bytes.
#[inline(always)]
fn without_offset(offset: i32, code_sum: u32) -> [i32; 4] {
    let lo = -offset * code_sum as i32;
    [0, lo, 0, lo]
}

/// `c` holds, for each of two rows, the product with the hi bytes and with the lo bytes.
#[inline(always)]
fn add_scaled<F: IntegerTile>(
    c: [i32; 4],
    code_sum: u32,
    x_scale: f32,
    scales: Scales,
    sums: &mut Sums,
) {
    let x_sum = x_scale * code_sum as i32 as f32;
    let mut row = 0;
    while row < 2 {
        let v = 256 * c[2 * row] + c[2 * row + 1];
        sums[row] = gpu::fma(x_scale * scales.d[row], v as f32, sums[row]);
        if F::HAS_MIN {
            sums[row] = gpu::fma(scales.m[row], x_sum, sums[row]);
        }
        row += 1;
    }
}

/// The sum of a part's groups, added in the order in which lanes exchange them.
#[inline(always)]
pub fn sum_of_groups<F: TileFormat>(sums: &[Sums; CHAIN_GROUPS], row: usize) -> f32 {
    let pair = |i: usize| sums[i][row] + sums[i + 1][row];
    if F::GROUPS == 4 { pair(0) + pair(2) } else { pair(0) }
}

/// Matrix instructions that a part takes, for each column of tokens.
#[cfg(not(target_arch = "nvptx64"))]
pub const fn part_products<F: TileFormat>() -> u32 {
    F::GROUPS as u32 * F::PRODUCTS
}

/// Records of a row.
#[inline(always)]
pub const fn row_records<F: TileFormat>(n_cols: u32) -> u32 {
    n_cols.div_ceil(F::RECORD_COLS)
}

/// Words that a tensor of `n_rows` x `n_cols` takes as records.
pub const fn tensor_words<F: TileFormat>(n_rows: u32, n_cols: u32) -> usize {
    n_rows.div_ceil(TILE_ROWS) as usize
        * row_records::<F>(n_cols) as usize
        * F::RECORD_WORDS as usize
}

/// Every tile format with its GGML name and the names of its kernels.
#[macro_export]
macro_rules! for_each_tile_format {
    ($with:ident) => {
        $with! { legacy::Q4_0, Q4_0, repack_q4_0, dequantize_q4_0_f32, dequantize_q4_0_f16, embed_q4_0, matmul_q4_0_x1, matmul_q4_0_x4, matmul_q4_0_x8, matmul_q4_0_x16, gated_q4_0_x8, experts_q4_0 }
        $with! { legacy::Q4_1, Q4_1, repack_q4_1, dequantize_q4_1_f32, dequantize_q4_1_f16, embed_q4_1, matmul_q4_1_x1, matmul_q4_1_x4, matmul_q4_1_x8, matmul_q4_1_x16, gated_q4_1_x8, experts_q4_1 }
        $with! { legacy::Q5_0, Q5_0, repack_q5_0, dequantize_q5_0_f32, dequantize_q5_0_f16, embed_q5_0, matmul_q5_0_x1, matmul_q5_0_x4, matmul_q5_0_x8, matmul_q5_0_x16, gated_q5_0_x8, experts_q5_0 }
        $with! { legacy::Q5_1, Q5_1, repack_q5_1, dequantize_q5_1_f32, dequantize_q5_1_f16, embed_q5_1, matmul_q5_1_x1, matmul_q5_1_x4, matmul_q5_1_x8, matmul_q5_1_x16, gated_q5_1_x8, experts_q5_1 }
        $with! { legacy::Q8_0, Q8_0, repack_q8_0, dequantize_q8_0_f32, dequantize_q8_0_f16, embed_q8_0, matmul_q8_0_x1, matmul_q8_0_x4, matmul_q8_0_x8, matmul_q8_0_x16, gated_q8_0_x8, experts_q8_0 }
        $with! { legacy::Mxfp4, MXFP4, repack_mxfp4, dequantize_mxfp4_f32, dequantize_mxfp4_f16, embed_mxfp4, matmul_mxfp4_x1, matmul_mxfp4_x4, matmul_mxfp4_x8, matmul_mxfp4_x16, gated_mxfp4_x8, experts_mxfp4 }
        $with! { k_sixteens::Q2K, Q2_K, repack_q2_k, dequantize_q2_k_f32, dequantize_q2_k_f16, embed_q2_k, matmul_q2_k_x1, matmul_q2_k_x4, matmul_q2_k_x8, matmul_q2_k_x16, gated_q2_k_x8, experts_q2_k }
        $with! { k_sixteens::Q3K, Q3_K, repack_q3_k, dequantize_q3_k_f32, dequantize_q3_k_f16, embed_q3_k, matmul_q3_k_x1, matmul_q3_k_x4, matmul_q3_k_x8, matmul_q3_k_x16, gated_q3_k_x8, experts_q3_k }
        $with! { k_quants::Q4K, Q4_K, repack_q4_k, dequantize_q4_k_f32, dequantize_q4_k_f16, embed_q4_k, matmul_q4_k_x1, matmul_q4_k_x4, matmul_q4_k_x8, matmul_q4_k_x16, gated_q4_k_x8, experts_q4_k }
        $with! { k_quants::Q5K, Q5_K, repack_q5_k, dequantize_q5_k_f32, dequantize_q5_k_f16, embed_q5_k, matmul_q5_k_x1, matmul_q5_k_x4, matmul_q5_k_x8, matmul_q5_k_x16, gated_q5_k_x8, experts_q5_k }
        $with! { k_sixteens::Q6K, Q6_K, repack_q6_k, dequantize_q6_k_f32, dequantize_q6_k_f16, embed_q6_k, matmul_q6_k_x1, matmul_q6_k_x4, matmul_q6_k_x8, matmul_q6_k_x16, gated_q6_k_x8, experts_q6_k }
        $with! { float::F16Tile, F16, repack_f16, dequantize_f16_f32, dequantize_f16_f16, embed_f16, matmul_f16_x1, matmul_f16_x4, matmul_f16_x8, matmul_f16_x16, gated_f16_x8, experts_f16 }
        $with! { float::Bf16Tile, BF16, repack_bf16, dequantize_bf16_f32, dequantize_bf16_f16, embed_bf16, matmul_bf16_x1, matmul_bf16_x4, matmul_bf16_x8, matmul_bf16_x16, gated_bf16_x8, experts_bf16 }
    };
}

/// The tile formats whose products of several tokens have `matmul::ring`s, as above: dense ones of up to eight tokens,
/// and in blocks of four tiles the gated ones, and those of 64 rows.
#[macro_export]
macro_rules! for_each_ring_format {
    ($with:ident) => {
        $with! { legacy::Q4_1, Q4_1, matmul_q4_1_x8_ring, gated_q4_1_ring, matmul_q4_1_rows64 }
        $with! { legacy::Q5_1, Q5_1, matmul_q5_1_x8_ring, gated_q5_1_ring, matmul_q5_1_rows64 }
        $with! { legacy::Q8_0, Q8_0, matmul_q8_0_x8_ring, gated_q8_0_ring, matmul_q8_0_rows64 }
        $with! { legacy::Mxfp4, MXFP4, matmul_mxfp4_x8_ring, gated_mxfp4_ring, matmul_mxfp4_rows64 }
        $with! { k_quants::Q4K, Q4_K, matmul_q4_k_x8_ring, gated_q4_k_ring, matmul_q4_k_rows64 }
    };
}

/// The tile formats that have products of `matmul::alone`, as above. The K formats have none: with three tiles a block
/// Q4_K and Q6_K lost.
#[macro_export]
macro_rules! for_each_alone_format {
    ($with:ident) => {
        $with! { legacy::Q4_0, Q4_0, matmul_q4_0_rows16, matmul_q4_0_rows48 }
        $with! { legacy::Q4_1, Q4_1, matmul_q4_1_rows16, matmul_q4_1_rows48 }
        $with! { legacy::Q5_0, Q5_0, matmul_q5_0_rows16, matmul_q5_0_rows48 }
        $with! { legacy::Q5_1, Q5_1, matmul_q5_1_rows16, matmul_q5_1_rows48 }
        $with! { legacy::Q8_0, Q8_0, matmul_q8_0_rows16, matmul_q8_0_rows48 }
        $with! { legacy::Mxfp4, MXFP4, matmul_mxfp4_rows16, matmul_mxfp4_rows48 }
        $with! { float::F16Tile, F16, matmul_f16_rows16, matmul_f16_rows48 }
        $with! { float::Bf16Tile, BF16, matmul_bf16_rows16, matmul_bf16_rows48 }
    };
}

/// The tile formats that have products of `matmul::normed`, as above: those of the models that have layer norms.
#[macro_export]
macro_rules! for_each_normed_format {
    ($with:ident) => {
        $with! { legacy::Q4_0, Q4_0, matmul_q4_0_norm32, matmul_q4_0_norm64 }
        $with! { legacy::Q4_1, Q4_1, matmul_q4_1_norm32, matmul_q4_1_norm64 }
        $with! { legacy::Q5_0, Q5_0, matmul_q5_0_norm32, matmul_q5_0_norm64 }
        $with! { legacy::Q5_1, Q5_1, matmul_q5_1_norm32, matmul_q5_1_norm64 }
        $with! { legacy::Q8_0, Q8_0, matmul_q8_0_norm32, matmul_q8_0_norm64 }
        $with! { float::F16Tile, F16, matmul_f16_norm32, matmul_f16_norm64 }
        $with! { float::Bf16Tile, BF16, matmul_bf16_norm32, matmul_bf16_norm64 }
    };
}

/// The tile formats as above, each with its product of wide blocks (`matmul::plain`).
#[macro_export]
macro_rules! for_each_wide_format {
    ($with:ident) => {
        $with! { legacy::Q4_0, Q4_0, matmul_q4_0_x4_wide }
        $with! { legacy::Q4_1, Q4_1, matmul_q4_1_x4_wide }
        $with! { legacy::Q5_0, Q5_0, matmul_q5_0_x4_wide }
        $with! { legacy::Q5_1, Q5_1, matmul_q5_1_x4_wide }
        $with! { legacy::Q8_0, Q8_0, matmul_q8_0_x4_wide }
        $with! { legacy::Mxfp4, MXFP4, matmul_mxfp4_x4_wide }
        $with! { k_sixteens::Q2K, Q2_K, matmul_q2_k_x4_wide }
        $with! { k_sixteens::Q3K, Q3_K, matmul_q3_k_x4_wide }
        $with! { k_quants::Q4K, Q4_K, matmul_q4_k_x4_wide }
        $with! { k_quants::Q5K, Q5_K, matmul_q5_k_x4_wide }
        $with! { k_sixteens::Q6K, Q6_K, matmul_q6_k_x4_wide }
        $with! { float::F16Tile, F16, matmul_f16_x4_wide }
        $with! { float::Bf16Tile, BF16, matmul_bf16_x4_wide }
    };
}
