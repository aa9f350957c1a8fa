package fleet

import (
	"container/heap"
	"context"

	"github.com/otad/otad/pkg/ota"
	"github.com/otad/otad/pkg/selector"
)

// Why a device gets no execution.
const (
	ExcludedSelector = "not-selected"
	ExcludedHardware = "hardware"
	ExcludedCurrent  = "current" // it reports to run the image already
	ExcludedRevoked  = "revoked"
	excludedLater    = "enrolled-later"
	excludedHas      = "has-execution"
)

// candidates judges the devices of one rollout.
type candidates struct {
	rollout ota.Rollout
	release ota.Release
	sel     selector.Selector
	has     map[string]bool // devices that have an execution in the rollout
}

// exclude says why a device that is selected and not revoked is not eligible; ""
// when it is.
func (c candidates) exclude(v DeviceView) string {
	switch {
	case !c.release.Fits(v.Hardware):
		return ExcludedHardware
	case c.has[v.ID]:
		return excludedHas
	case v.CreatedAt.After(c.rollout.CreatedAt):
		return excludedLater // a snapshot rollout: who comes later is not counted in
	case v.Firmware().Digest == c.release.ImageDigest:
		return ExcludedCurrent
	}
	return ""
}

// pick returns the n eligible devices with the lowest buckets, in that order.
// Memory grows with n, not with the fleet.
func (s *Service) pick(ctx context.Context, c candidates, n int) ([]string, error) {
	if n <= 0 {
		return nil, nil
	}
	h := &bucketHeap{}
	no := false
	err := s.Store.SelectDevices(ctx, DeviceQuery{Selector: c.sel, Revoked: &no}, func(v DeviceView) bool {
		if c.exclude(v) == "" {
			h.offer(ranked{v.ID, ota.Bucket(c.rollout.Seed, v.ID)}, n)
		}
		return true
	})
	if err != nil {
		return nil, err
	}
	ids := make([]string, h.Len())
	for i := len(ids) - 1; i >= 0; i-- {
		ids[i] = heap.Pop(h).(ranked).id
	}
	return ids, nil
}

type ranked struct {
	id     string
	bucket uint64
}

// bucketHeap keeps the n smallest; the largest of them is on top.
type bucketHeap []ranked

func (h bucketHeap) Len() int { return len(h) }
func (h bucketHeap) Less(i, j int) bool {
	if h[i].bucket != h[j].bucket {
		return h[i].bucket > h[j].bucket
	}
	return h[i].id > h[j].id
}
func (h bucketHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *bucketHeap) Push(x any)   { *h = append(*h, x.(ranked)) }
func (h *bucketHeap) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}

func (h *bucketHeap) offer(r ranked, n int) {
	if h.Len() < n {
		heap.Push(h, r)
		return
	}
	top := (*h)[0]
	if r.bucket < top.bucket || r.bucket == top.bucket && r.id < top.id {
		(*h)[0] = r
		heap.Fix(h, 0)
	}
}
