//! Turning a table of bytes, in squares that fit the vectors of WebAssembly.

/// Side of the squares in which a table is turned.
const TILE: usize = 16;

/// Turns a table of bytes: row `i` of `columns` rows becomes column `i`.
pub(crate) fn transpose(source: &[u8], columns: usize) -> Vec<u8> {
    let rows = source.len().checked_div(columns).unwrap_or(0);
    let mut turned = vec![0; rows * columns];
    let whole = |side: usize| side / TILE * TILE;
    for top in (0..whole(rows)).step_by(TILE) {
        for left in (0..whole(columns)).step_by(TILE) {
            let mut tile = [[0; TILE]; TILE];
            for (row, line) in tile.iter_mut().enumerate() {
                line.copy_from_slice(&source[(top + row) * columns + left..][..TILE]);
            }
            for (column, line) in turn_tile(tile).iter().enumerate() {
                turned[(left + column) * rows + top..][..TILE].copy_from_slice(line);
            }
        }
    }
    // What is left at the right, and below.
    for row in 0..rows {
        let from = if row < whole(rows) { whole(columns) } else { 0 };
        for column in from..columns {
            turned[column * rows + row] = source[row * columns + column];
        }
    }
    turned
}

/// Four perfect shuffles of the rows bring every byte to its place.
#[inline(always)]
fn turn_tile(mut tile: [[u8; TILE]; TILE]) -> [[u8; TILE]; TILE] {
    for _ in 0..4 {
        let mut next = [[0; TILE]; TILE];
        for (row, pair) in next.chunks_exact_mut(2).enumerate() {
            (pair[0], pair[1]) = interleave(tile[row], tile[row + TILE / 2]);
        }
        tile = next;
    }
    tile
}

/// The bytes of two rows in turn.
#[cfg(all(target_arch = "wasm32", target_feature = "simd128"))]
#[inline(always)]
fn interleave(a: [u8; TILE], b: [u8; TILE]) -> ([u8; TILE], [u8; TILE]) {
    use core::arch::wasm32::{i8x16_shuffle, v128};
    let (a, b): (v128, v128) = (bytemuck::cast(a), bytemuck::cast(b));
    let low = i8x16_shuffle::<0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23>(a, b);
    let high = i8x16_shuffle::<8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31>(a, b);
    (bytemuck::cast(low), bytemuck::cast(high))
}

/// The bytes of two rows in turn.
#[cfg(not(all(target_arch = "wasm32", target_feature = "simd128")))]
#[inline(always)]
fn interleave(a: [u8; TILE], b: [u8; TILE]) -> ([u8; TILE], [u8; TILE]) {
    let half = |from: usize| std::array::from_fn(|i| if i % 2 == 0 { a[from + i / 2] } else { b[from + i / 2] });
    (half(0), half(TILE / 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_of_a_table_is_turned() {
        for (rows, columns) in [(0, 0), (0, 7), (1, 1), (16, 16), (32, 48), (15, 17), (33, 50), (1, 40), (40, 1)] {
            let source: Vec<u8> = (0..rows * columns).map(|i| (i * 131 % 251) as u8).collect();
            let turned = transpose(&source, columns);
            assert_eq!(turned.len(), source.len());
            for (at, byte) in source.iter().enumerate() {
                assert_eq!(turned[at % columns * rows + at / columns], *byte, "{rows} x {columns}, {at}");
            }
        }
    }
}
