package vision

import (
	"errors"
	"fmt"
)

// scan is one pass over some components: a band of coefficients at a precision.
type scan struct {
	d          *jpegFile
	bits       bitReader
	parts      []part
	first, end int  // coefficients, in zigzag order, both included
	high, low  uint // bits known before, and after
	endOfBand  int  // blocks, after this one, that have no more coefficients in the band
}

// part is a component of a scan and its tables.
type part struct {
	c      *component
	dc, ac *huffman
}

// scan reads a scan header and the entropy-coded data behind it.
func (d *jpegFile) scan(body []byte) error {
	if d.scans++; d.scans > maxScans {
		return fmt.Errorf("more than %d scans", maxScans)
	}
	if len(body) < 1 || len(body) != 4+2*int(body[0]) || body[0] < 1 || body[0] > 4 {
		return errors.New("scan header of the wrong length")
	}
	s := scan{d: d}
	for b := body[1 : 1+2*body[0]]; len(b) > 0; b = b[2:] {
		p := part{}
		for i := range d.components {
			if d.components[i].id == int(b[0]) {
				p.c = &d.components[i]
			}
		}
		if p.c == nil || b[1]>>4 > 3 || b[1]&15 > 3 {
			return fmt.Errorf("scan of component %d with tables %#x", b[0], b[1])
		}
		for _, other := range s.parts {
			if other.c == p.c {
				return fmt.Errorf("component %d twice in a scan", b[0])
			}
		}
		p.dc, p.ac = &d.dc[b[1]>>4], &d.ac[b[1]&15]
		s.parts = append(s.parts, p)
	}
	tail := body[len(body)-3:]
	s.first, s.end, s.high, s.low = int(tail[0]), int(tail[1]), uint(tail[2]>>4), uint(tail[2]&15)
	if !d.progressive {
		s.first, s.end, s.high, s.low = 0, 63, 0, 0 // libjpeg does not look at them either
	} else if s.end > 63 || s.first > s.end || (s.first == 0) != (s.end == 0) || s.first > 0 && len(s.parts) > 1 ||
		s.low > 13 || s.high > 0 && s.high != s.low+1 {
		return fmt.Errorf("scan of coefficients %d to %d, bits %d to %d", s.first, s.end, s.high, s.low)
	}
	s.bits = bitReader{data: d.data, pos: d.pos}
	if err := s.run(); err != nil {
		return err
	}
	for _, p := range s.parts {
		p.c.seen = true
	}
	d.pos = s.bits.pos
	return nil
}

// run goes through the MCUs: one block of a single component, or of several
// components as many as their sampling factors say.
func (s *scan) run() error {
	single := len(s.parts) == 1
	columns, rows := blocks(s.d.width, s.d.wide), blocks(s.d.height, s.d.high)
	if single {
		columns, rows = s.parts[0].c.columns, s.parts[0].c.rows
	}
	s.reset()
	for n := range columns * rows {
		if s.d.restart > 0 && n > 0 && n%s.d.restart == 0 {
			if err := s.bits.restart(byte(n/s.d.restart-1) % 8); err != nil {
				return err
			}
			s.reset()
		}
		y, x := n/columns, n%columns
		for i := range s.parts {
			p := &s.parts[i]
			if single {
				if err := s.block(p, y, x); err != nil {
					return err
				}
				continue
			}
			for k := range p.c.h * p.c.v {
				if err := s.block(p, y*p.c.v+k/p.c.h, x*p.c.h+k%p.c.h); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// reset is what a restart marker resets.
func (s *scan) reset() {
	s.endOfBand = 0
	for _, p := range s.parts {
		p.c.predicted = 0
	}
}

// block reads the block at (y, x) of a component.
func (s *scan) block(p *part, y, x int) error {
	if s.d.progressive {
		b := (*[64]int16)(p.c.coefficients[64*(y*p.c.stride+x):])
		switch {
		case s.first == 0 && s.high == 0:
			v, err := s.nextDC(p)
			b[0] = int16(v << s.low)
			return err
		case s.first == 0:
			bit, err := s.bits.take(1)
			b[0] |= int16(bit << s.low)
			return err
		case s.high == 0:
			return s.band(p, b)
		}
		return s.refine(p, b)
	}
	var b [64]int16
	v, err := s.nextDC(p)
	if err != nil {
		return err
	}
	b[0] = int16(v)
	if err := s.sequential(p, &b); err != nil {
		return err
	}
	inverse(&b, &s.d.quant[p.c.table], p.c.pix[64*y*p.c.stride+8*x:], 8*p.c.stride)
	return nil
}

// nextDC reads a DC value, coded as the difference from the last one.
func (s *scan) nextDC(p *part) (int32, error) {
	size, err := s.bits.symbol(p.dc)
	if err != nil {
		return 0, err
	}
	if size > 15 {
		return 0, fmt.Errorf("DC difference of %d bits", size)
	}
	v, err := s.bits.signed(uint(size))
	p.c.predicted += v
	return p.c.predicted, err
}

// sequential reads the AC coefficients of a sequential block: pairs of a run of
// zeros and a value.
func (s *scan) sequential(p *part, b *[64]int16) error {
	for k := 1; k < 64; k++ {
		symbol, err := s.bits.symbol(p.ac)
		if err != nil {
			return err
		}
		run, size := int(symbol>>4), uint(symbol&15)
		if size == 0 {
			if run != 15 {
				return nil
			}
			k += 15
			continue
		}
		if k += run; k > 63 {
			return errors.New("more than 64 coefficients")
		}
		v, err := s.bits.signed(size)
		if err != nil {
			return err
		}
		b[zigzag[k]] = int16(v)
	}
	return nil
}

// band reads the high bits of a band of AC coefficients for the first time. A
// run of whole blocks may have none.
func (s *scan) band(p *part, b *[64]int16) error {
	if s.endOfBand > 0 {
		s.endOfBand--
		return nil
	}
	for k := s.first; k <= s.end; k++ {
		symbol, err := s.bits.symbol(p.ac)
		if err != nil {
			return err
		}
		run, size := int(symbol>>4), uint(symbol&15)
		if size == 0 && run < 15 {
			extra, err := s.bits.take(uint(run))
			s.endOfBand = 1<<run + int(extra) - 1
			return err
		}
		if k += run; size == 0 {
			continue
		}
		if k > s.end {
			return errors.New("more coefficients than the band holds")
		}
		v, err := s.bits.signed(size)
		if err != nil {
			return err
		}
		b[zigzag[k]] = int16(v << s.low)
	}
	return nil
}

// refine reads one more bit of a band of AC coefficients: of each that is known
// to be not zero, and of those that become so now, with their signs.
func (s *scan) refine(p *part, b *[64]int16) error {
	k := s.first
	if s.endOfBand == 0 {
		for ; k <= s.end; k++ {
			symbol, err := s.bits.symbol(p.ac)
			if err != nil {
				return err
			}
			run, size, value := int(symbol>>4), symbol&15, int16(0)
			switch {
			case size == 1:
				sign, err := s.bits.take(1)
				if err != nil {
					return err
				}
				value = int16(2*int(sign)-1) << s.low
			case size > 1:
				return fmt.Errorf("a refined coefficient of %d bits", size)
			case run < 15:
				extra, err := s.bits.take(uint(run))
				if err != nil {
					return err
				}
				s.endOfBand = 1<<run + int(extra)
			}
			if s.endOfBand > 0 {
				break
			}
			if k, err = s.correct(b, k, run); err != nil {
				return err
			}
			if value != 0 {
				if k > s.end {
					return errors.New("more coefficients than the band holds")
				}
				b[zigzag[k]] = value
			}
		}
	}
	if s.endOfBand > 0 {
		s.endOfBand--
		_, err := s.correct(b, k, 64)
		return err
	}
	return nil
}

// correct reads the correction bits of the coefficients from k on that are not
// zero, and stops at the zero behind run others.
func (s *scan) correct(b *[64]int16, k, run int) (int, error) {
	for ; k <= s.end; k++ {
		v := &b[zigzag[k]]
		if *v == 0 {
			if run--; run < 0 {
				break
			}
			continue
		}
		bit, err := s.bits.take(1)
		if err != nil {
			return k, err
		}
		if bit == 0 || *v&(1<<s.low) != 0 && *v > 0 || -*v&(1<<s.low) != 0 && *v < 0 {
			continue
		}
		if *v > 0 {
			*v += 1 << s.low
		} else {
			*v -= 1 << s.low
		}
	}
	return k, nil
}
