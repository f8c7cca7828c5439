package sim

// mistakes lists what is planted. PLANTED in a replacement stands for the condition that it is.
var mistakes = []mistake{
	// Those that the issue names.
	{"drop the watermark", []edit{{
		"compose/sim/bank_flush_test.go",
		"		switch mark.See(r.Event.Seq, r.Event.Prev) {\n",
		"		sight := mark.See(r.Event.Seq, r.Event.Prev)\n		if PLANTED && sight == ledger.SightDuplicate {\n			sight = ledger.SightNew\n		}\n		switch sight {\n",
	}}, 0},
	{"commit before effect", []edit{{
		"compose/sim/ports_test.go",
		"	err = b.do(ctx, fmt.Sprintf(\"flush %d/%d\", call.Partition, call.From), func() (err error) {\n",
		`	part := &b.p.w.bank.parts[call.Partition]
	if PLANTED {
		err := b.do(ctx, "commit", func() error {
			if part = &b.p.w.bank.parts[call.Partition]; part.Offset != call.From {
				return sqlstore.ErrFenced
			}
			part.Offset = call.To
			return nil
		})
		if err != nil {
			return r, err
		}
	}
	err = b.do(ctx, fmt.Sprintf("flush %d/%d", call.Partition, call.From), func() (err error) {
		if part = &b.p.w.bank.parts[call.Partition]; PLANTED && part.Offset == call.To {
			part.Offset = call.From
		}
`,
	}}, 0},
	{"commit before effect in the usage log", []edit{{
		"compose/sim/twins_test.go",
		"	for i := range batches {\n		b := &batches[i]\n		for len(b.Rows) > 0 {\n",
		`	for i := range batches {
		if b := &batches[i]; PLANTED {
			err := u.p.do(ctx, toUsage, "store position", func() error {
				u.p.w.usage.move(b.Partition, b.Position)
				return nil
			})
			if err != nil {
				return err
			}
		}
	}
	for i := range batches {
		b := &batches[i]
		for len(b.Rows) > 0 {
`,
	}}, 0},
	{"settle a hold twice", []edit{{
		"ledger/journal/recover.go",
		"Epoch: rec.Epoch, Charge: charge,\n	})\n	if o := r.opens[rec.Hold]; o != nil {",
		"Epoch: rec.Epoch, Charge: charge,\n	})\n	if o := r.opens[rec.Hold]; o != nil && !PLANTED {",
	}}, 0},
	{"ship out of order", []edit{{
		"ledger/eventlog/lane.go",
		"		start := time.Now()\n		err := l.shipper.produce",
		"		start := time.Now()\n		if n := len(batch); PLANTED && n > 1 {\n			_ = l.shipper.produce(ctx, l.partition, batch[n/2:], attempt)\n		}\n		err := l.shipper.produce",
	}}, 0},
	{"ignore the fence", []edit{{
		"compose/sim/bank_flush_test.go",
		"	if p.Offset != call.From {\n",
		"	if p.Offset != call.From && !PLANTED {\n",
	}}, 0},
	{"skip fsync", []edit{{
		"ledger/journal/writer.go",
		"		if err := w.file.Sync(); err != nil {\n",
		"		if err := w.file.Sync; PLANTED {\n		} else if err := err(); err != nil {\n",
	}}, 0},
	{"ignore the floor", []edit{{
		"ledger/hold/local.go",
		"call.Offset < p.floor {",
		"call.Offset < p.floor && !PLANTED {",
	}}, 0},
	{"ignore the account's at", []edit{{
		"ledger/hold/local_epoch.go",
		"acc != nil && acc.at >= 0 && acc.at <= call.From {",
		"acc != nil && acc.at >= 0 && (acc.at <= call.From || PLANTED) {",
	}, {
		"ledger/hold/local_epoch.go",
		"split := p.split(&call, sums); split != 0 {",
		"split := p.split(&call, sums); split != 0 && !PLANTED {",
	}}, 63},
	{"report an epoch too early", []edit{{
		"relay/desk/epoch.go",
		"b.journal.AckedThrough(st.Partition) >= seq &&",
		"(b.journal.AckedThrough(st.Partition) >= seq || PLANTED) &&",
	}}, 0},
	{"subtract settled of any epoch", []edit{{
		"consumers/quota/tally.go",
		"settles := h != nil && h.Epoch == t.epoch",
		"settles := h != nil && (h.Epoch == t.epoch || PLANTED)",
	}}, 0},

	{"keep the holds of the unregistered", []edit{{
		"consumers/quota/waiting.go",
		"unknown[id] >= w.patience.live {",
		"unknown[id] >= w.patience.live && !PLANTED {",
	}}, 0},

	// Those of model/holds.py.
	{"reply_across_epochs", []edit{{
		"relay/desk/reserve.go",
		"!t.free && (v.epoch != epoch || !v.open) {",
		"!t.free && (v.epoch != epoch || !v.open) && !PLANTED {",
	}}, 0},
	{"no_sweep", []edit{{
		"relay/desk/epoch.go",
		"		if err := d.sweepPartition(",
		"		if PLANTED {\n			break\n		}\n		if err := d.sweepPartition(",
	}}, 152},
	{"no_tombstone", []edit{{
		"ledger/hold/local_epoch.go",
		"	flags.dropped = true\n",
		"	flags.dropped = !PLANTED\n",
	}}, 66},
	{"no_skip_list", []edit{{
		"consumers/quota/tally.go",
		"	for _, o := range skipped {\n",
		"	for _, o := range skipped {\n		if PLANTED {\n			break\n		}\n",
	}}, 0},
	{"epoch_from_redis", []edit{{
		"compose/sim/bank_test.go",
		"	p.Epoch = max(p.Epoch, opened, atLeast, uint64(now.UnixMilli())) + 1\n",
		"	if PLANTED {\n		return ledger.BeginCall{Partition: partition, Epoch: atLeast + 1, Opened: min(opened, atLeast), Offset: p.Offset}\n	}\n	p.Epoch = max(p.Epoch, opened, atLeast, uint64(now.UnixMilli())) + 1\n",
	}}, 0},
	{"epoch_from_mysql", []edit{{
		"compose/sim/bank_test.go",
		"	p := &b.parts[partition]\n",
		"	p := &b.parts[partition]\n	if PLANTED {\n		p.Epoch++\n		return ledger.BeginCall{Partition: partition, Epoch: p.Epoch, Offset: p.Offset}\n	}\n",
	}}, 135},
	{"ignore_run_id", []edit{{
		"ledger/hold/local.go",
		"return c.epoch != 0 && c.run == run }",
		"return c.epoch != 0 && (c.run == run || PLANTED) }",
	}, {
		"ledger/hold/local_epoch.go",
		"s.Present, s.Foreign = true, c.run != run\n",
		"s.Present, s.Foreign = true, c.run != run && !PLANTED\n",
	}}, 0},
	{"giveup_edge", []edit{{ // one in five is not noticed when it happens, and is never looked at again
		"consumers/quota/look.go",
		"State == sqlstore.ProducerGone && slices.Contains(st.Members, producers[i].ID) {",
		"State == sqlstore.ProducerGone && slices.Contains(st.Members, producers[i].ID) && !(PLANTED && producers[i].ID[15]%5 == 0) {",
	}}, 356},
	{"reassert_unjournaled", []edit{{
		"relay/desk/epoch.go",
		"		reopened, err := own.journal.Reopen(",
		"		if PLANTED {\n			t.epoch, t.reopened = st.Epoch, t.opened\n			continue\n		}\n		reopened, err := own.journal.Reopen(",
	}}, 0},
	{"reassert what an epoch was opened without", []edit{{
		"relay/desk/epoch.go",
		"	d.cutBefore(v, st.Partition, st.Opened)\n",
		"	if PLANTED {\n		st.Opened = 0\n	}\n	d.cutBefore(v, st.Partition, st.Opened)\n",
	}}, 0},
	{"forget what the counters knew to be open", []edit{{
		"ledger/hold/local_epoch.go",
		"	if p.open {\n		opened",
		"	if p.open && !PLANTED {\n		opened",
	}}, 0},
	{"extension_unjournaled", []edit{{
		"relay/desk/ticket.go",
		"				t.slot.SetTotal(t.amount)\n",
		"				if !PLANTED {\n					t.slot.SetTotal(t.amount)\n				}\n",
	}}, 0},
	{"redrive_past_watermark", []edit{{
		"compose/sim/bank_test.go",
		"		copied.Redrive = true\n",
		`		if PLANTED {
			for _, delta := range copied.Deltas(nil) {
				if acc := b.accounts[b.placeOf(delta.Account, d.Partition)]; acc != nil {
					acc.balance = acc.balance.Plus(delta.Balance)
					b.write(delta.Account, acc)
				}
			}
			d.Redriven = true
			return nil
		}
		copied.Redrive = true
`,
	}}, 0},
	{"recover_elsewhere", []edit{{
		"relay/desk/run.go",
		"		last, err = j.Settle(ev)\n",
		`		if own := d.current().journal; PLANTED {
			_, err = own.Open(&open.OpenRecord)
			if err == nil {
				last, err = own.Settle(ev)
			}
			if err == nil {
				err = last.Wait(ctx)
			}
			if err == nil {
				_, last, err = j.Void(open.Hold)
			}
		} else {
			last, err = j.Settle(ev)
		}
`,
	}}, 96},
	{"verify_by_at", []edit{{
		"compose/sim/check_test.go",
		"return max(h.At, h.Done) }",
		"if PLANTED {\n		return h.At\n	}\n	return max(h.At, h.Done)\n}",
	}}, 0},
	{"wait_for_mute", []edit{{
		"consumers/quota/waiting.go",
		"		if w.waited[p.ID] < patience {\n",
		"		if w.waited[p.ID] < patience || PLANTED && patience == w.patience.live {\n",
	}}, 74},
	{"extend_blind", []edit{{
		"ledger/hold/local.go",
		"left < more {",
		"left < more && !PLANTED {",
	}}, 0},

	// Those of model/edits.py.
	{"plain_read", []edit{{ // the columns are read before they are locked
		"compose/sim/bank_test.go",
		"	refuse func(*ledger.Event) bool\n",
		"	refuse func(*ledger.Event) bool\n	seen   map[ledger.Account]int64\n",
	}, {
		"compose/sim/bank_test.go",
		"	column := r.column\n",
		"	column := r.column\n	if v, ok := b.seen[a]; ok && PLANTED {\n		column = v\n	}\n",
	}, {
		"compose/sim/ports_test.go",
		"		call.Now = b.p.now()\n",
		"		call.Now = b.p.now()\n		if PLANTED {\n			b.p.w.bank.seen = seen\n			defer func() { b.p.w.bank.seen = nil }()\n		}\n",
	}, {
		"compose/sim/ports_test.go",
		"	part := &b.p.w.bank.parts[call.Partition]\n",
		`	seen := map[ledger.Account]int64{}
	if PLANTED {
		err := b.do(ctx, "columns", func() error {
			for a, r := range b.p.w.bank.rows {
				seen[a] = r.column
			}
			return nil
		})
		if err != nil {
			return r, err
		}
	}
	part := &b.p.w.bank.parts[call.Partition]
`,
	}}, 0},
	{"moved_final", []edit{{
		"compose/sim/bank_test.go",
		"	for _, state := range outboxStates {\n",
		"	for _, state := range outboxStates {\n		if PLANTED && state == \"moved\" {\n			continue\n		}\n",
	}}, 174},
	{"key_no_user", []edit{{
		"compose/sim/bank_test.go",
		"	return \"redeem:\" + name + \":\" + strconv.FormatInt(user, 10)\n",
		"	if PLANTED {\n		return \"redeem:\" + name\n	}\n	return \"redeem:\" + name + \":\" + strconv.FormatInt(user, 10)\n",
	}}, 241},
	{"key_counter", []edit{{
		"compose/sim/bank_test.go",
		"	return \"adopt:\" + b.newID().String() + \":\" + strconv.FormatInt(owner, 10)\n",
		`	if PLANTED {
		n := 0
		for key := range b.outbox {
			if strings.HasPrefix(key, "adopt:") {
				n++
			}
		}
		return fmt.Sprintf("adopt:%d:%d", n, owner)
	}
	return "adopt:" + b.newID().String() + ":" + strconv.FormatInt(owner, 10)
`,
	}}, 100},
	{"missing_moves", []edit{{
		"compose/sim/bank_flush_test.go",
		"			s.adopted += noted\n",
		"			if PLANTED {\n				s.adopted += d.Balance.Left()\n				continue\n			}\n			s.adopted += noted\n",
	}}, 0},
	{"replay_bare", []edit{{
		"compose/sim/bank_test.go",
		"		if r := b.rows[at.Account]; r != nil {\n			b.adopt(at.Account, acc, r.owner, now)\n		}\n",
		`		r := b.rows[at.Account]
		if PLANTED {
			if acc.balance = balances[at.Account]; r != nil {
				r.column = acc.due()
			}
			continue
		}
		if r != nil {
			b.adopt(at.Account, acc, r.owner, now)
		}
`,
	}}, 0},
	// Found later.
	{"open below the end that was noted", []edit{{
		"consumers/quota/look.go",
		"	if ready, err = s.raiseFloor(ctx, st, end); err != nil || !ready {\n",
		"	if ready, err = s.raiseFloor(ctx, st, end); !PLANTED && (err != nil || !ready) {\n",
	}, {
		"consumers/quota/look.go",
		"	// Sums of nothing raise",
		"	if PLANTED {\n		return true, nil\n	}\n	// Sums of nothing raise",
	}}, 0},
	{"answer before the log has the bill", []edit{{
		"relay/desk/desk.go",
		"= journal.NewMemory(), true, memorySegment, 0\n",
		"= journal.NewMemory(), !PLANTED, memorySegment, 0\n",
	}}, 0},
	{"bill what the log has of a damaged journal", []edit{{
		"relay/desk/doubtful.go",
		"	// First the counters, then the journal:",
		"	if PLANTED {\n		ended = nil\n	}\n	// First the counters, then the journal:",
	}}, 0},
}
