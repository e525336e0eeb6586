package serve

import (
	"errors"

	"github.com/uadt-train/uadt-train/internal/qwenvl"
	"github.com/uadt-train/uadt-train/internal/tokenizer"
	"github.com/uadt-train/uadt-train/internal/vision"
)

// prompt is a conversation as the engine takes it.
type prompt struct {
	tokens      []int32
	images      []qwenvl.Image
	imageTokens int
}

// buildPrompt renders, tokenizes and expands a conversation.
func (s *Server) buildPrompt(messages []chatMessage, generation bool, limits processorOptions) (prompt, error) {
	if len(messages) == 0 {
		return prompt{}, badRequest("", "list index out of range: messages is empty")
	}
	config, err := s.visionConfig(limits)
	if err != nil {
		return prompt{}, err
	}
	count := 0
	for _, m := range messages {
		for _, part := range m.Content {
			if isImage(part.Type) {
				count++
			}
		}
	}
	if count > s.options.MaxImages {
		return prompt{}, badRequest("image", "At most %d image(s) may be provided in one prompt. (parameter=image)", s.options.MaxImages)
	}
	var p prompt
	turns := make([]tokenizer.Message, 0, len(messages))
	for _, m := range messages {
		turn := tokenizer.Message{Role: m.Role}
		for i := range m.Content {
			part := &m.Content[i]
			switch {
			case isImage(part.Type):
				image, err := s.image(part, len(p.images), config)
				if err != nil {
					return prompt{}, err
				}
				p.images = append(p.images, image)
				turn.Parts = append(turn.Parts, tokenizer.Part{Image: true})
			case part.Text != nil && (part.Type == "text" || part.Type == "input_text" || part.Type == ""):
				turn.Parts = append(turn.Parts, tokenizer.Part{Text: *part.Text})
			default:
				return prompt{}, badRequest("", "Unknown part type: %s", part.Type)
			}
		}
		turns = append(turns, turn)
	}
	text, err := s.template.Render(turns, generation)
	if err != nil {
		return prompt{}, badRequest("", "%v", err)
	}
	err = s.expand(&p, text)
	return p, err
}

// expand tokenizes the rendered text and widens each image pad to its image's
// tokens.
func (s *Server) expand(p *prompt, text string) error {
	counts := make([]int, len(p.images))
	for i, image := range p.images {
		counts[i] = image.Grid.Tokens(s.config.Vision.MergeSize)
		p.imageTokens += counts[i]
	}
	ids := s.tokens.Encode(text)
	expanded, err := tokenizer.ExpandPads(ids, int32(s.config.ImageToken), counts)
	var pads *tokenizer.PadCountError
	if errors.As(err, &pads) {
		return badRequest("", "Found %d %s tokens in the text but %d images were passed.", pads.Pads, tokenizer.ImagePad, pads.Images)
	}
	if err != nil {
		return badRequest("", "%v", err)
	}
	p.tokens = expanded
	return nil
}

func isImage(kind string) bool { return kind == "image_url" || kind == "input_image" }

// visionConfig is the server's preprocessing under a request's pixel limits.
func (s *Server) visionConfig(limits processorOptions) (vision.Config, error) {
	c := s.vision
	c.MinPixels, c.MaxPixels = or(limits.MinPixels, c.MinPixels), or(limits.MaxPixels, c.MaxPixels)
	if err := c.Validate(); err != nil {
		return c, badRequest("mm_processor_kwargs", "%v", err)
	}
	return c, nil
}
