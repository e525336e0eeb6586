package qwenvl

// PatchPosition is the 2-D rotary position of one patch: row, column.
type PatchPosition [2]int32

// PatchPositions gives the row and column of every patch of an image in the
// order in which preprocessing stores them: frame by frame, merge blocks in
// reading order, and within a block its merge x merge patches in reading order.
func PatchPositions(g Grid, merge int) []PatchPosition {
	positions := make([]PatchPosition, 0, g.Patches())
	for range g.T {
		for blockRow := 0; blockRow < g.H; blockRow += merge {
			for blockColumn := 0; blockColumn < g.W; blockColumn += merge {
				for row := range merge {
					for column := range merge {
						positions = append(positions, PatchPosition{int32(blockRow + row), int32(blockColumn + column)})
					}
				}
			}
		}
	}
	return positions
}

// Windows gives the order in which the tower visits the merged tokens of one
// image so that attention windows are contiguous: order[i] is the merged token
// (frame, row, column in reading order) at place i, and bounds are the
// cumulative window ends counted in patches, starting with 0, without empty
// windows. Window sides are WindowSize / MergeSize / PatchSize merged tokens;
// windows at the right and lower border are cut, not padded.
func (v VisionConfig) Windows(g Grid) (order, bounds []int) {
	side := v.WindowSize / v.MergeSize / v.PatchSize
	rows, columns := g.H/v.MergeSize, g.W/v.MergeSize
	unit := v.MergeSize * v.MergeSize
	order = make([]int, 0, g.T*rows*columns)
	bounds = []int{0}
	for t := range g.T {
		for top := 0; top < rows; top += side {
			for left := 0; left < columns; left += side {
				for row := top; row < min(top+side, rows); row++ {
					for column := left; column < min(left+side, columns); column++ {
						order = append(order, (t*rows+row)*columns+column)
					}
				}
				bounds = append(bounds, len(order)*unit)
			}
		}
	}
	return order, bounds
}

// FrameBounds are the cumulative ends, in patches, of what a full-attention
// block attends within: one frame each.
func FrameBounds(g Grid) []int {
	bounds := make([]int, g.T+1)
	for t := range g.T {
		bounds[t+1] = bounds[t] + g.H*g.W
	}
	return bounds
}
