package sqlstore

// Together runs calls of methods of the store with what they write in one
// transaction, in the order of the calls. Those that find nothing to write return
// before it. It is for tests of what the operations of one batch may do to each other;
// nobody else may use the store meanwhile.
func (s *Store) Together(calls ...func()) {
	writers := s.writer
	s.writer = &inbox{queue: make(chan *operation), closing: writers.closing, stopped: writers.stopped}
	defer func() { s.writer = writers }()
	returned := make(chan struct{})
	running := len(calls)
	var batch []*operation
	for _, f := range calls {
		go func() {
			f()
			returned <- struct{}{}
		}()
		select {
		case o := <-s.writer.queue:
			batch = append(batch, o)
		case <-returned:
			running--
		}
	}
	if len(batch) > 0 {
		writers.batches <- batch
	}
	for ; running > 0; running-- {
		for done := false; !done; {
			select {
			case o := <-s.writer.queue: // of a call that writes more than once
				writers.batches <- []*operation{o}
			case <-returned:
				done = true
			}
		}
	}
}
