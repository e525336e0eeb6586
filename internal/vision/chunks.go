package vision

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"image"

	"golang.org/x/image/webp"
)

// chunks finds the chunk of this name in a sequence of (length, name, data)
// chunks: PNG (big-endian, length first, CRC behind) or RIFF (little-endian,
// name first, padded to even).
func chunks(data []byte, name string, riff bool) []byte {
	for len(data) >= 8 {
		var size int
		var got string
		if riff {
			got, size = string(data[:4]), int(binary.LittleEndian.Uint32(data[4:]))
		} else {
			size, got = int(binary.BigEndian.Uint32(data)), string(data[4:8])
		}
		if size > len(data)-8 {
			return nil
		}
		if got == name {
			return data[8 : 8+size]
		}
		next := 8 + size + 4 // CRC
		if riff {
			next = 8 + size + size%2
		}
		if next > len(data) {
			return nil
		}
		data = data[next:]
	}
	return nil
}

// webpConfig reads a WebP header and checks that the frame in it has the size of
// the canvas around it: the decoder believes the frame, limits the canvas.
func webpConfig(data []byte) (image.Config, error) {
	c, err := webp.DecodeConfig(bytes.NewReader(data))
	if err != nil {
		return c, err
	}
	var width, height int
	if f := chunks(data[12:], "VP8 ", true); len(f) >= 10 { // frame tag, start code, two 14-bit sizes
		width, height = int(binary.LittleEndian.Uint16(f[6:]))&0x3fff, int(binary.LittleEndian.Uint16(f[8:]))&0x3fff
	} else if f := chunks(data[12:], "VP8L", true); len(f) >= 5 { // signature, two 14-bit sizes less 1
		bits := binary.LittleEndian.Uint32(f[1:])
		width, height = int(bits&0x3fff)+1, int(bits>>14&0x3fff)+1
	} else {
		return c, errors.New("no still picture in it")
	}
	if width != c.Width || height != c.Height {
		return c, fmt.Errorf("a frame of %d x %d on a canvas of %d x %d", width, height, c.Width, c.Height)
	}
	return c, nil
}
