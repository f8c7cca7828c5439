// Package journal is the node's own durable memory: append-only segment files that say which requests were opened and
// how each ended, and a memory-mapped file of slots that says how far the open ones have come. It imports only files.
//
// It owns JOURNAL_DIR, one directory per incarnation, each locked by the process that writes it:
//
//	JOURNAL_DIR/0198c0de-…/lock                         flock: whoever holds it owns the directory
//	                       slots                        mapped: synced mark, acknowledgement marks, one slot per open request
//	                       0000000000000007.seg         live segment; the highest one is being written
//	                       0000000000000006-1732….kept  shipped and closed, kept until JOURNAL_KEEP has passed since the time named
//	                       0000000000000005-1732….damaged  the same, but with damage in it: never removed by the program
//	                       retired                      nothing is left to recover here
//
// It promises:
//   - a Commit that returned nil is on the disk (L1); Next never hands out an event that is not;
//   - an event has the place in the producer's sequence that it has in the file, and a hold is settled or voided once (L2);
//   - no record disappears unnoticed (L6): only frames of the last, never synced batch may be cut off as torn, anything
//     else that cannot be read is reported as Damage and reading goes on behind it. The mark of what was synced is not synced itself: after a
//     power loss it may be an old one, so whatever was open before a torn end is Doubtful, as before damage. Once the end is cut off, the next
//     Adopt does not see it any more;
//   - bytes, open requests, queued bytes, parcels in flight and kept segments are bounded (L7);
//   - after a failed write or fsync it never pretends: every later append and every waiting Commit fails.
//
// Who calls it: the relay's desk opens, settles and voids; the shipper takes parcels from Next and reports Acked; a
// starting node adopts what dead ones left.
//
// What happens on a crash: the directory stays, unlocked. Adopt reads it, under its own incarnation and continuing its
// sequence, and says which holds are open and how each closed one ended; the caller settles the open ones through the same
// methods as live requests. Whatever is interrupted there is found again by the next Adopt, because records are closed by
// hold id.
//
// A node without a disk to keep has its journal on Memory, with Config.AwaitLog: then a Commit of an event waits for Acked in the
// place of the fsync, no request is opened while the log does not acknowledge, and a crash leaves nothing to adopt. All else is the same.
//
// A segment grows in blocks of zeros (Config.BlockBytes), which its frames replace: most fsyncs change no size. Zeros behind all that is known to be
// synced are the clean end of the last segment, anything else there is torn; a zero before it is damage. A disk that is full refuses the
// next block, and with it the batch that needs it. A segment is cut to its frames when the next one is made, and when it is closed or adopted.
// A release that knew no blocks takes the zeros for a torn write, of at most a block: it cuts them off and skips the sequence numbers that it skips
// after any torn write, and nothing else; what it writes itself is read here as ever.
//
// What it assumes of the disk: fsync of a file makes its contents and its size durable, fsync of a directory makes its entries durable,
// rename is atomic, and a write that was not fsynced may survive wholly, partly or not at all, in any order.
package journal
