package rollout

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
)

// seedStride is the number of seeds that belong to one job: a server gives
// choice i the seed base + i, so bases must lie further apart than the largest
// group. 1024 is the low 10 bits.
const seedStride = 1 << 10

// BaseSeed derives the base seed of a job from what identifies its draw and
// from nothing else: not the incarnation, the server or the time. attempt
// counts resamplings of the same question in the same epoch. The result is
// non-negative, fits an int64 and has its low 10 bits zero.
func BaseSeed(runSeed int64, stage, questionID string, epoch, attempt int) int64 {
	// Length-prefixed fields, so that no two different tuples hash alike.
	sum := sha256.Sum256(fmt.Appendf(nil, "uadt-seed-1|%d|%d:%s|%d:%s|%d|%d",
		runSeed, len(stage), stage, len(questionID), questionID, epoch, attempt))
	value := binary.LittleEndian.Uint64(sum[:8])
	return int64(value&(1<<63-1)) &^ (seedStride - 1)
}
