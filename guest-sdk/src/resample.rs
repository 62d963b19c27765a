//! Resizing where vectors have 16 bytes: number for number what the crate fast_image_resize gives elsewhere, whose loops
//! want wider ones. Both sides are done in one pass over the new rows, four at a time, so that what lies between the two
//! stays in the processor's nearest cache.

use bytemuck::{Zeroable, bytes_of};

use crate::lanes::{self, Bytes, Lanes, Pairs};
use crate::resize::Filter;
use crate::windows::Windows;

/// Rows that are made together: a pixel of each fills a vector.
const GROUP: usize = 4;
/// Bytes of a row that are weighted together: their sums fill half of the processor's registers.
const BLOCK: usize = 32;
/// Pairs of weights that are added up one after the other without a loop.
const FEW: usize = 4;

/// Two neighbouring pixels of each row of a group: colour by colour, and then two numbers that nothing is made of.
type Neighbours = [Pairs; GROUP];

/// The pixels at another size; no side is 0. Nothing where that is too large.
pub(crate) fn resample(pixels: &[u8], from: (usize, usize), to: (usize, usize), filter: Filter) -> Option<Vec<u8>> {
    // Below the picture's last row there is room for a whole group.
    let rows = to.1.checked_next_multiple_of(GROUP)?;
    let mut made = vec![0; to.0.checked_mul(3)?.checked_mul(rows)?];
    if filter == Filter::Nearest {
        nearest(pixels, from, to, &mut made);
    } else {
        let windows = |from: usize, to: usize, align| (from != to).then(|| Windows::new(from, to, filter, align));
        let (horizontal, vertical) = (windows(from.0, to.0, 2), windows(from.1, to.1, 1));
        weighted(pixels, 3 * from.0, vertical.as_ref(), horizontal.as_ref(), 3 * to.0, &mut made);
    }
    made.truncate(3 * to.0 * to.1);
    Some(made)
}

/// Rows out of rows, and in each of them columns out of columns; a side without windows keeps its size.
fn weighted(
    pixels: &[u8],
    from: usize,
    vertical: Option<&Windows>,
    horizontal: Option<&Windows>,
    to: usize,
    made: &mut [u8],
) {
    let rows = vertical.map_or(pixels.len() / from, Windows::len);
    let mut scratch = vec![0; from];
    let mut pairs = vec![Neighbours::zeroed(); from.div_ceil(6)];
    for (group, output) in made.chunks_exact_mut(GROUP * to).enumerate() {
        for (lane, output) in output.chunks_exact_mut(to).enumerate().take(rows - GROUP * group) {
            let row = GROUP * group + lane;
            let line = if let Some(windows) = vertical {
                down(pixels, windows, row, &mut scratch);
                &scratch
            } else {
                &pixels[row * from..][..from]
            };
            if horizontal.is_some() {
                spread(line, lane, &mut pairs);
            } else {
                output.copy_from_slice(line);
            }
        }
        if let Some(windows) = horizontal {
            let across = if windows.longest() <= FEW { across::<true> } else { across::<false> };
            across(&pairs, windows, to, output);
        }
    }
}

/// A new row out of the old ones.
fn down(pixels: &[u8], windows: &Windows, row: usize, line: &mut [u8]) {
    let stride = line.len();
    let (first, weights) = windows.get(row);
    let rows = &pixels[first * stride..];
    let weighted_rows = if weights.len() <= FEW { weighted_rows::<true> } else { weighted_rows::<false> };
    if stride >= BLOCK {
        return weighted_rows(rows, weights, windows.bits(), line);
    }
    // Rows of few pixels, each copied to where it has room.
    let mut roomy = vec![0; 2 * weights.len() * BLOCK];
    for (to, from) in roomy.chunks_exact_mut(BLOCK).zip(rows.chunks_exact(stride)) {
        to[..stride].copy_from_slice(from);
    }
    let mut made = [0; BLOCK];
    weighted_rows(&roomy, weights, windows.bits(), &mut made);
    line.copy_from_slice(&made[..stride]);
}

/// The sum of rows as long as a line is, which is at least a block. A function of its own, as are the other inner loops: in
/// one piece they have too few registers.
#[inline(never)]
fn weighted_rows<const ARE_FEW: bool>(rows: &[u8], weights: &[i32], bits: u32, line: &mut [u8]) {
    let stride = line.len();
    let last = stride - BLOCK;
    let mut at = 0;
    loop {
        let mut sums = [[lanes::splat(1 << (bits - 1)); 4]; 2];
        for_each::<ARE_FEW>(weights, |index, weights| {
            // The partner of an odd row weighs nothing, and may lie beyond the picture.
            let apart = if weights >> 16 == 0 { 0 } else { stride };
            let pair = &rows[at + 2 * index * stride..][..apart + BLOCK];
            let (upper, lower) = (&pair[..BLOCK], &pair[apart..]);
            let weights = lanes::splat(weights);
            lanes::weigh_rows(&mut sums[0], lanes::load(upper), lanes::load(lower), weights);
            lanes::weigh_rows(&mut sums[1], lanes::load(&upper[16..]), lanes::load(&lower[16..]), weights);
        });
        for (made, sums) in line[at..][..BLOCK].chunks_exact_mut(16).zip(sums) {
            made.copy_from_slice(bytes_of(&lanes::bytes(sums, bits)));
        }
        if at == last {
            return;
        }
        // Some bytes of the last block are made a second time.
        at = (at + BLOCK).min(last);
    }
}

/// Calls `add` for each pair of weights and its place. There is no loop over a few: a guest can be interrupted at the head
/// of one, and what lies in vectors goes to memory and back there.
#[inline(always)]
fn for_each<const ARE_FEW: bool>(weights: &[i32], mut add: impl FnMut(usize, i32)) {
    let mut rest = weights;
    let mut done = 0;
    if !ARE_FEW {
        while let [a, b, c, d, others @ ..] = rest {
            add(done, *a);
            add(done + 1, *b);
            add(done + 2, *c);
            add(done + 3, *d);
            (rest, done) = (others, done + FEW);
        }
    }
    // Written out: the compiler would make a loop of one.
    if let [a, rest @ ..] = rest {
        add(done, *a);
        if let [b, rest @ ..] = rest {
            add(done + 1, *b);
            if let [c, rest @ ..] = rest {
                add(done + 2, *c);
                if let [d, ..] = rest {
                    add(done + 3, *d);
                }
            }
        }
    }
}

/// Puts a row where those of its group are weighted together.
#[inline(never)]
fn spread(line: &[u8], lane: usize, pairs: &mut [Neighbours]) {
    let mut done = 0;
    // Sixteen pixels at a time, of which each vector takes four; the last pixels have no whole vector behind them.
    for (bytes, pairs) in line.windows(52).step_by(48).zip(pairs.chunks_exact_mut(8)) {
        for (at, pairs) in pairs.chunks_exact_mut(2).enumerate() {
            let [left, right] = lanes::pixels(lanes::load(&bytes[12 * at..]));
            (pairs[0][lane], pairs[1][lane]) = (left, right);
        }
        done += 8;
    }
    for (bytes, pairs) in line[6 * done..].chunks(6).zip(&mut pairs[done..]) {
        let mut room = [0; 16];
        room[..bytes.len()].copy_from_slice(bytes);
        pairs[lane] = lanes::pixels(lanes::load(&room))[0];
    }
}

/// The new pixels of a group's rows out of the old ones.
#[inline(never)]
fn across<const ARE_FEW: bool>(pairs: &[Neighbours], windows: &Windows, stride: usize, output: &mut [u8]) {
    let (first, rest) = output.split_at_mut(stride);
    let (second, rest) = rest.split_at_mut(stride);
    let (third, fourth) = rest.split_at_mut(stride);
    let upper = first.chunks_mut(12).zip(second.chunks_mut(12));
    let lower = third.chunks_mut(12).zip(fourth.chunks_mut(12));
    for (block, ((a, b), (c, d))) in upper.zip(lower).enumerate() {
        let columns: [Bytes; 4] = std::array::from_fn(|column| {
            let (first, weights) = windows.get((4 * block + column).min(windows.len() - 1));
            weighted_pairs::<ARE_FEW>(&pairs[first / 2..][..weights.len()], weights, windows.bits())
        });
        for (to, row) in [a, b, c, d].into_iter().zip(lanes::rows(columns)) {
            let row = bytes_of(&row);
            match to.first_chunk_mut::<12>() {
                Some(to) => to.copy_from_slice(&row[..12]),
                None => to.copy_from_slice(&row[..to.len()]),
            }
        }
    }
}

/// A pixel of each row, and a byte behind each.
#[inline(always)]
fn weighted_pairs<const ARE_FEW: bool>(pairs: &[Neighbours], weights: &[i32], bits: u32) -> Bytes {
    let mut sums: [Lanes; GROUP] = [lanes::splat(1 << (bits - 1)); GROUP];
    for_each::<ARE_FEW>(weights, |index, weights| {
        let weights = lanes::splat(weights);
        for (sum, pair) in sums.iter_mut().zip(&pairs[index]) {
            *sum = lanes::weigh(*sum, *pair, weights);
        }
    });
    lanes::bytes(sums, bits)
}

/// The pixel beneath the middle of each new one.
fn nearest(pixels: &[u8], from: (usize, usize), to: (usize, usize), made: &mut [u8]) {
    let (across, down) = (from.0 as f64 / to.0 as f64, from.1 as f64 / to.1 as f64);
    let column = |column: usize| ((across * 0.5 + across * column as f64) as usize).min(from.0 - 1);
    let columns: Vec<usize> = (0..to.0).map(column).collect();
    // Added up and not multiplied, as the crate does: the last bit may decide which row it is.
    let mut middle = down * 0.5;
    for output in made.chunks_exact_mut(3 * to.0).take(to.1) {
        let row = &pixels[3 * from.0 * (middle as usize).min(from.1 - 1)..][..3 * from.0];
        for (pixel, column) in output.chunks_exact_mut(3).zip(&columns) {
            pixel.copy_from_slice(&row[3 * column..][..3]);
        }
        middle += down;
    }
}
