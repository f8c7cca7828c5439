// Package meter finds out what one answer consumed. It is fed every payload of the answer as the relay passes it on,
// believes the upstream's usage where it can be true, counts for itself where not, and says which it was.
//
// It does no I/O and holds its state per request, in memory that does not grow with the answer (L7); after a crash the
// journal's progress slot, which the relay raises from Streamed before a chunk is sent, stands in for it. The relay
// calls it from the one goroutine that serves the request. The tokenizer runs only in Finish and CountPrompt, and for
// answers longer than keepText while they go by: not on the hot path.
//
// What an upstream can do, and what follows. Every line has a test of its name.
//
//	usage                          billed                                                flags
//	-----------------------------  ----------------------------------------------------  ------------------------
//	in a chunk with choices: []    as reported; the chunk is UsageOnly and can be         -
//	                               dropped if the client did not ask for it
//	inside the last content chunk  as reported; the chunk passes                         -
//	cumulative in every chunk      the last                                              -
//	null                           as if it were not there yet                           -
//	missing                        text and prompt counted                               usage_missing
//	zero                           text and prompt counted                               usage_zero
//	no input, or no output         that figure counted, if there was text; the other     usage_no_input,
//	                               as reported                                           usage_no_output
//	negative                       text and prompt counted                               usage_negative
//	absurd (over 2^31)             text and prompt counted                               usage_absurd
//	not whole numbers              text and prompt counted                               usage_malformed
//	impossible after a good one    the good one                                          as above
//	sent twice                     once: the last, never the sum                         usage_repeated
//	late, after [DONE]             as reported, if the relay still reads                 usage_late
//	early, text follows it         the larger of reported and counted output             usage_early, if counted
//	doubled figures                as reported: it is what the operator pays, and        usage_exceeds_text, if
//	                               hidden reasoning makes it possible                    above the text's bytes
//	total or parts that do not     as reported                                           usage_inconsistent_total,
//	add up                                                                               usage_parts_exceed_whole
//
//	answer                         billed                                                flags
//	-----------------------------  ----------------------------------------------------  ------------------------
//	error before any text          nothing: Failed                                       stream_error
//	error in mid-stream            what came before, reported or counted                 stream_error
//	ends without a finish reason   what came, reported or counted; nothing if no text    stream_truncated
//	stopped by us or the client    what came, reported or counted                        -
//	payload that is not JSON       nothing for it; it passes                             payload_undecodable
//	whole answer that is no JSON   nothing: Failed                                       payload_undecodable
package meter
