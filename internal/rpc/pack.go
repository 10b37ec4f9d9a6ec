package rpc

import (
	"github.com/kwaai/kwaaid/internal/expert"
)

// pack makes the request's tensor of those rows of the batch that pairs ask for, each once: of a layer's rows a host of few experts
// needs few. Pairs that the limits will refuse are left as they are.
func (x *exchange) pack(batch []float32, pairs []expert.Pair) {
	in := &x.request.Input
	x.request.Pairs = pairs
	places, used := placesOf(pairs, in.Rows)
	if used == in.Rows {
		x.rows = append(x.piece[:0], batch)
		return
	}
	x.used = make([]int32, 0, used)
	for row, place := range places {
		if place < 0 {
			continue
		}
		x.used = append(x.used, int32(row))
		begin, end := row*in.Hidden, (row+1)*in.Hidden
		if n := len(x.rows); n > 0 && row > 0 && places[row-1] >= 0 {
			first := begin - len(x.rows[n-1])
			x.rows[n-1] = batch[first:end] // one piece with the row before it
		} else {
			x.rows = append(x.rows, batch[begin:end])
		}
	}
	x.request.Pairs = moved(pairs, places)
	in.Rows = used
}

// placesOf returns where each row of a batch stands among those that pairs ask for, -1 for the others, and how many these are. Where they are
// all, or where a pair asks for what is not there, used is rows.
func placesOf(pairs []expert.Pair, rows int) (places []int32, used int) {
	if rows == 1 {
		return nil, rows
	}
	for i := range pairs {
		if pairs[i].Rows == nil {
			return nil, rows
		}
	}
	places = make([]int32, rows)
	for i := range pairs {
		for _, r := range pairs[i].Rows {
			if r < 0 || int(r) >= rows {
				return nil, rows
			}
			places[r] = 1
		}
	}
	for row, asked := range places {
		places[row] = -1
		if asked > 0 {
			places[row] = int32(used)
			used++
		}
	}
	if used == 0 { // no pairs
		return nil, rows
	}
	return places, used
}

// moved returns pairs whose rows are at their places.
func moved(pairs []expert.Pair, places []int32) []expert.Pair {
	total := 0
	for i := range pairs {
		total += len(pairs[i].Rows)
	}
	rows := make([]int32, 0, total)
	out := make([]expert.Pair, len(pairs))
	for i, p := range pairs {
		first := len(rows)
		for _, r := range p.Rows {
			rows = append(rows, places[r])
		}
		p.Rows = rows[first:]
		out[i] = p
	}
	return out
}
