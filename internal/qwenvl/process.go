package qwenvl

// history is what penalties and minimum lengths look at.
type history struct {
	prompt   []int32
	response []int32
	ends     []int32 // tokens that would end the response
}

// process applies, in vLLM's order, allowed tokens, bias, bans, the minimum
// length and the penalties to the logits.
func (s *sampler) process(z []float32, options *Sampling, h history) {
	if len(options.Allowed) > 0 {
		s.nextStamp()
		for _, id := range options.Allowed {
			s.seen[id] = s.stamp
		}
		for i := range z {
			if s.seen[i] != s.stamp {
				z[i] = minusInf
			}
		}
	}
	for _, b := range options.Bias {
		z[b.Token] += b.Add
	}
	if len(h.response) < options.MinTokens {
		for _, id := range h.ends {
			z[id] = minusInf
		}
	}
	s.penalize(z, options, h)
	for _, id := range options.Banned {
		z[id] = minusInf
	}
}

func (s *sampler) penalize(z []float32, options *Sampling, h history) {
	if r := float32(options.RepetitionPenalty); r != 0 && r != 1 {
		s.nextStamp()
		for _, ids := range [2][]int32{h.prompt, h.response} {
			for _, id := range ids {
				if s.seen[id] == s.stamp {
					continue
				}
				s.seen[id] = s.stamp
				if z[id] > 0 {
					z[id] /= r
				} else {
					z[id] *= r
				}
			}
		}
	}
	if f := float32(options.FrequencyPenalty); f != 0 {
		for _, id := range h.response {
			z[id] -= f
		}
	}
	if p := float32(options.PresencePenalty); p != 0 {
		s.nextStamp()
		for _, id := range h.response {
			if s.seen[id] != s.stamp {
				s.seen[id] = s.stamp
				z[id] -= p
			}
		}
	}
}

// nextStamp empties the seen set.
func (s *sampler) nextStamp() {
	s.stamp++
	if s.stamp == 0 {
		clear(s.seen)
		s.stamp = 1
	}
}
