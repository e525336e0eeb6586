package vision

import (
	"bytes"
	"encoding/binary"
)

// orientationTag is the EXIF and TIFF tag that says how to turn the picture.
const orientationTag = 0x0112

// orientation reads the tag from a TIFF block: 1 to 8, and 1 (leave it) for
// whatever cannot be read, since a broken EXIF block does not spoil a picture.
func orientation(block []byte) int {
	block = bytes.TrimPrefix(block, []byte("Exif\x00\x00"))
	var order binary.ByteOrder
	switch {
	case bytes.HasPrefix(block, []byte("II*\x00")):
		order = binary.LittleEndian
	case bytes.HasPrefix(block, []byte("MM\x00*")):
		order = binary.BigEndian
	default:
		return 1
	}
	if len(block) < 8 {
		return 1
	}
	at := int64(order.Uint32(block[4:]))
	if at+2 > int64(len(block)) {
		return 1
	}
	entries := block[at+2:]
	for range order.Uint16(block[at:]) {
		if len(entries) < 12 {
			return 1
		}
		const short = 3 // the tag's type
		if order.Uint16(entries) == orientationTag && order.Uint16(entries[2:]) == short {
			if v := int(order.Uint16(entries[8:])); v >= 1 && v <= 8 {
				return v
			}
			return 1
		}
		entries = entries[12:]
	}
	return 1
}

// jpegExif finds the first EXIF segment before the image data.
func jpegExif(data []byte) []byte {
	data = data[2:]
	for len(data) >= 4 && data[0] == 0xff {
		marker := data[1]
		if marker == 0xff { // fill byte
			data = data[1:]
			continue
		}
		size := int(binary.BigEndian.Uint16(data[2:]))
		if marker == 0xda || size < 2 || size > len(data)-2 {
			return nil
		}
		if body := data[4 : 2+size]; marker == 0xe1 && bytes.HasPrefix(body, []byte("Exif\x00\x00")) {
			return body
		}
		data = data[2+size:]
	}
	return nil
}

// pngExif finds the eXIf chunk.
func pngExif(data []byte) []byte { return chunks(data[8:], "eXIf", false) }

// webpExif finds the EXIF chunk.
func webpExif(data []byte) []byte { return chunks(data[12:], "EXIF", true) }
