package reward

// Code says why a part has its value; it is a column of the ledger.
type Code string

// Codes of the answer part. Only [CodeRight] (and partial credit by f1 or
// judge) goes with a value above 0.
const (
	CodeRight          Code = "right"                  // equals the gold answer
	CodeWrong          Code = "wrong"                  // a clear answer, and not the gold one
	CodePartial        Code = "partial"                // some of the gold letters or tokens
	CodeNoAnswer       Code = "no_answer"              // no <answer> block, or nothing in it
	CodeSeveralAnswers Code = "several_answers"        // more than one <answer> block
	CodeTruncated      Code = "truncated"              // ran into the token limit
	CodeAborted        Code = "aborted"                // the server gave up on it; missing
	CodeNoLetter       Code = "no_letter"              // a choice question, but no option is named
	CodeSeveralLetters Code = "several_letters"        // single choice, several letters
	CodeContradiction  Code = "contradiction"          // the letter and the text after it disagree
	CodeOutside        Code = "outside_options"        // a letter that is not among the options
	CodeNegated        Code = "negated"                // "not ..."
	CodeHedged         Code = "hedged"                 // "A or B", "probably A"
	CodeListed         Code = "listed"                 // several diagnoses
	CodeAmbiguous      Code = "ambiguous_abbreviation" // RD, RP or DR within a longer answer
	CodeTooLong        Code = "too_long"               // an essay where an answer was asked for
	CodeUnverifiable   Code = "unverifiable_text"      // a letter with text after it, and no parsed options to check it by
	CodeNoGold         Code = "no_gold"                // the record has no usable gold answer; missing
)

// Codes of the format part.
const (
	CodeFormatted     Code = "formatted"       // as asked
	CodeNoThink       Code = "no_think"        // no <think> block
	CodeSeveralThinks Code = "several_thinks"  // more than one <think> or </think>
	CodeUnbalanced    Code = "unbalanced_tags" // a tag without its partner, nested tags, or the wrong order
	CodeEmptyBlock    Code = "empty_block"     // a block with only white space in it
	CodeTextOutside   Code = "text_outside"    // text before, between or after the blocks
)

// Codes of parts that plug in.
const (
	CodeScored     Code = "scored"      // computed
	CodePartFailed Code = "part_failed" // its function failed; missing
	CodeTimeout    Code = "timeout"     // its function took too long; missing
)
