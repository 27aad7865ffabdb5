// Fills in the calls of the sweeps as ops/engines/cuda/launch.py does, and compares what they find.
#pragma once

#include <string>

#include "sweeps_oracle.h"

namespace pairops::cuda {

// Kernels' results against the oracle's, for one problem and some terms of it.
class Run {
   public:
    Run(Problem& problem, std::vector<Term>& terms)
        : problem_(problem), shaped_(problem.shaped), terms_(terms) {
        facts_ = shape_of(shaped_.precision, shaped_.d, shaped_.hopper);
        panels_ = (shaped_.d + facts_.slice - 1) / facts_.slice * (facts_.slice / PANEL);
    }

    // Of which sets is a gradient by the embeddings asked for?
    void all(bool by_x, bool by_y) {
        if (!problem_.x.rows.size()) pack(problem_.x);
        if (!problem_.same && !problem_.y_.rows.size()) pack(problem_.y_);
        for (int axis = 0; axis < (problem_.same ? 1 : 2); axis++) forward_terms(axis);
        check_statistics();
        const Gradients expected = gradients(problem_, terms_);
        backward_rows(0, by_x, expected);
        if (!problem_.same) backward_rows(1, by_y, expected);
    }

   private:
    int blocks(int n) const { return (n + facts_.rows - 1) / facts_.rows; }
    int tiles(int n) const { return (n + facts_.columns - 1) / facts_.columns; }

    void pack(OneSet& set) {
        const int padded = (set.n + PADDED_ROWS - 1) / PADDED_ROWS * PADDED_ROWS;
        const auto numbers = std::size_t(padded) * std::size_t(facts_.parts * panels_ * PANEL);
        set.rows = Exact<std::uint16_t>(numbers);
        set.high = Exact<float>(std::size_t(padded));
        set.rest = Exact<float>(std::size_t(padded));
        set.n_valid_found = Exact<std::int32_t>(1);
        pack_set({set.z.data(), set.scale.data_or_null(), set.permutation.data(), set.valid.data(),
                  set.n, set.d, panels_, set.rows.data(), set.high.data(), set.rest.data(),
                  set.n_valid_found.data()},
                 shaped_.dtype, facts_.parts, 0);
        set.rows.check_guards("rows");
        set.high.check_guards("scales");
        set.rest.check_guards("scales");
        if (set.n_valid_found[0] != set.n_valid)
            throw Wrong("pack_set found another number of valid rows");
    }

    // (blocks, 2): from the first to after the last place that a block's rows meet a positive or
    // themselves at.
    Exact<Index> band(int axis) const {
        const OneSet &rows = problem_.set(axis), &cols = problem_.set(1 - axis);
        Exact<Index> found(2 * std::size_t(blocks(rows.n)), 0);
        for (int row = 0; row < rows.n; row++) {
            Index* of = &found[2 * std::size_t(row / facts_.rows)];
            for (int col = 0; col < cols.n; col++) {
                const int a = int(rows.permutation[row]), b = int(cols.permutation[col]);
                const int i = axis == 0 ? a : b, j = axis == 0 ? b : a;
                if (problem_.x.label[i] < 0 || problem_.y().label[j] < 0) continue;
                if (!problem_.on_side(i, j, Side::pos) && problem_.itself[i] != j) continue;
                if (of[0] == of[1]) of[0] = col, of[1] = col + 1;
                of[0] = std::min(of[0], Index(col));
                of[1] = std::max(of[1], Index(col + 1));
            }
        }
        return found;
    }

    void begin(Sweep& sweep, int axis) {
        sweep.rows = problem_.set(axis).told();
        sweep.cols = problem_.set(1 - axis).told();
        sweep.pos_begin = problem_.pos_begin.data();
        sweep.pos_end = problem_.pos_end.data();
        sweep.self_index = problem_.self_index.data();
        band_ = band(axis);
        sweep.band = problem_.same ? nullptr : band_.data();
        sweep.transposed = axis == 1;
        sweep.normalized = shaped_.normalized;
        sweep.panels = panels_;
    }

    // Statistics and sums are for backward alone.
    void add_term(Sweep& sweep, const Term& term, bool transposed, bool for_backward) {
        Slots rows{sweep.row_operands, &sweep.n_row_operands};
        Slots cols{sweep.col_operands, &sweep.n_col_operands};
        Slots &owner = transposed ? cols : rows, &partner = transposed ? rows : cols;
        TermCall& to = sweep.terms[sweep.n_terms++];
        to.kind = term.kind;
        to.side = term.side;
        to.transposed = transposed;
        for (int k = 0; k < 2; k++) {
            to.args[k] = (term.by_partner[k] ? partner : owner).add(term.args[k]);
            to.by_arg[k] = -1;
        }
        to.above = owner.add(term.above);
        to.below = owner.add(term.below);
        to.statistic = to.cotangent = -1;
        if (!for_backward) return;
        to.statistic = owner.add(Operand{term.values.data(), 1, 0});
        to.cotangent = owner.add(term.cotangent);
        to.bits = term.bits.data_or_null();
    }

    void forward_terms(int axis) {
        ForwardCall call{};
        begin(call, axis);
        const auto n = std::size_t(call.rows.n), splits = std::size_t(shaped_.splits);
        call.band_only = true;
        std::vector<Term*> owned;
        std::vector<Exact<std::uint8_t>> bytes;
        for (Term& term : terms_) {
            if (term.owners != axis) continue;
            add_term(call, term, false, false);
            call.band_only = call.band_only && term.side == Side::pos;
            term.values = Exact<float>(n);
            term.arguments = Exact<Index>(term.accumulator.back() == '@' ? n : 0);
            const Index across = tiles(call.cols.n);
            const Index of_rows = term.windowed() ? blocks(call.rows.n) : 0;
            term.bits = Exact<std::uint8_t>(std::size_t(of_rows * bytes_of(across)));
            bytes.emplace_back(std::size_t(splits > 1 ? of_rows * across : 0));
            call.values[owned.size()] = term.values.data();
            call.arguments[owned.size()] = term.arguments.data_or_null();
            call.tile_bits[owned.size()] = (splits > 1 ? bytes.back() : term.bits).data_or_null();
            owned.push_back(&term);
        }
        if (owned.empty()) return;
        const Exact<float> states(splits > 1 ? splits * 2 * owned.size() * n : 0);
        call.states = states.data_or_null();
        forward(call, shaped_.precision, shaped_.d, shaped_.splits, 0, shaped_.hopper);
        states.check_guards("states");
        if (splits > 1) {
            FinalizeCall last{};
            last.states = call.states, last.permutation = call.rows.permutation;
            last.n = call.rows.n, last.splits = shaped_.splits, last.n_terms = call.n_terms;
            last.blocks = blocks(call.rows.n), last.tiles = tiles(call.cols.n);
            for (int k = 0; k < call.n_terms; k++) {
                last.tile_bytes[k] = call.tile_bits[k];
                last.tile_bits[k] = owned[std::size_t(k)]->bits.data_or_null();
                last.kinds[k] = call.terms[k].kind;
                last.values[k] = call.values[k];
                last.arguments[k] = call.arguments[k];
            }
            finalize(last, 0);
        }
        for (const Term* term : owned) {
            term->values.check_guards("statistics");
            term->arguments.check_guards("arguments");
            term->bits.check_guards("bits");
        }
    }

    void backward_rows(int axis, bool embeddings, const Gradients& expected) {
        BackwardCall call{};
        begin(call, axis);
        const int n = call.rows.n, d = shaped_.d;
        const auto splits = std::size_t(shaped_.splits);
        struct Along {
            std::size_t term;
            int arg;
        };
        std::vector<Along> along;
        call.by_bits = call.band_only = true;
        for (std::size_t which = 0; which < terms_.size(); which++) {
            const Term& term = terms_[which];
            if (term.extreme()) continue;
            call.by_bits = call.by_bits && term.windowed();
            call.band_only = call.band_only && term.side == Side::pos;
            for (const bool transposed : {false, true}) {
                if (!problem_.same && transposed != (term.owners != axis)) continue;
                add_term(call, term, transposed, true);
                for (int k = 0; k < term.arity(); k++) {
                    if (term.by_partner[k] != transposed || !term.args[k].values.size() ||
                        !term.args[k].learned)
                        continue;
                    call.terms[call.n_terms - 1].by_arg[k] = std::int8_t(along.size());
                    along.push_back({which, k});
                }
            }
        }
        if (call.n_terms == 0) return;
        const auto numbers = std::size_t(n) * std::size_t(d);
        const Exact<float> gradient(embeddings ? splits * numbers : 0);
        const Exact<float> sums(splits * along.size() * std::size_t(n));
        call.gradient = gradient.data_or_null();
        call.sums = sums.data();
        call.n_sums = int(along.size());
        call.width = d;
        backward(call, shaped_.precision, shaped_.splits, 0, shaped_.hopper);
        gradient.check_guards("the gradient");
        sums.check_guards("sums");
        if (embeddings) check_gradient(axis, gradient, expected);
        for (std::size_t at = 0; at < along.size(); at++) {
            const auto [which, arg] = along[at];
            const Term& term = terms_[which];
            for (int i = 0; i < n; i++) {
                double found = 0;
                for (std::size_t split = 0; split < splits; split++)
                    found += sums[(split * along.size() + at) * std::size_t(n) + std::size_t(i)];
                expect(found, expected.by_arg[arg][which][std::size_t(i)],
                       2e-5 * expected.arg_size[arg][which][std::size_t(i)],
                       term.name + ": gradient by argument " + std::to_string(arg), i);
            }
        }
    }

    void check_gradient(int axis, const Exact<float>& gradient, const Gradients& expected) {
        const OneSet& set = problem_.set(axis);
        const auto n = std::size_t(set.n), d = std::size_t(set.d);
        const Exact<float> apart(shaped_.splits > 1 ? n * d : 0);
        const Exact<float>& out = shaped_.splits > 1 ? apart : gradient;
        ScaleCall call{};
        const Exact<float> factor(1, 3.f);
        call.gradient = gradient.data(), call.factor = factor.data();
        call.x = set.z.data(), call.valid = set.valid.data();
        call.scale = set.scale.data_or_null();
        call.n = set.n, call.d = set.d, call.splits = shaped_.splits;
        call.out = out.data();
        scale(call, shaped_.dtype, 0);
        out.check_guards("the gradient");
        // Of plain weights each is rounded to 11 bits. Where no number is negative, little cancels.
        const double gate = shaped_.precision == Precision::plain ? 1e-3
                            : shaped_.one_signed                  ? 1e-6
                                                                  : 1e-5;
        for (std::size_t i = 0; i < n; i++) {
            const double unit = 3 * gate * expected.largest * expected.size[axis][i];
            for (std::size_t k = 0; k < d; k++)
                expect(out[i * d + k], set.valid[i] ? 3 * expected.by[axis][i * d + k] : 0,
                       set.valid[i] ? unit * (shaped_.normalized ? set.r[i] : 1) : 0,
                       "number " + std::to_string(k) + " of the gradient by " + "xy"[axis], int(i));
        }
    }

    void check_statistics() const {
        for (const Term& term : terms_) {
            for (int owner = 0; owner < problem_.set(term.owners).n; owner++) {
                const Expected expected = statistic(problem_, term, owner);
                const double found = term.values[std::size_t(owner)];
                expect(found, expected.value, 1e-5 * (1 + expected.size), term.name, owner);
                if (!term.arguments.size()) continue;
                const int argument = int(term.arguments[std::size_t(owner)]);
                if (argument == expected.argument) continue;
                if (argument >= 0 && expected.argument >= 0) {  // nearly as low, or as high
                    const auto s = [&](int partner) {
                        return term.owners == 0 ? problem_.similarity(owner, partner)
                                                : problem_.similarity(partner, owner);
                    };
                    const double apart = std::fabs(s(argument) - s(expected.argument));
                    if (apart > 0 && apart < 1e-6) continue;
                }
                expect(argument, expected.argument, 0, term.name + ": argument", owner);
            }
            if (term.bits.size()) check_bits(term);
        }
    }

    void check_bits(const Term& term) const {
        const OneSet &rows = problem_.set(term.owners), &cols = problem_.set(1 - term.owners);
        std::vector<int> place(std::size_t(cols.n));
        for (int at = 0; at < cols.n; at++) place[std::size_t(cols.permutation[at])] = at;
        for (int block = 0; block < blocks(rows.n); block++) {
            std::vector<bool> has_pair(std::size_t(tiles(cols.n)), false);
            const int last = std::min((block + 1) * facts_.rows, rows.n);
            for (int at = block * facts_.rows; at < last; at++) {
                each_pair(problem_, term, int(rows.permutation[at]), [&](const Pair& pair) {
                    has_pair[std::size_t(place[std::size_t(pair.partner)] / facts_.columns)] = true;
                });
            }
            for (std::size_t tile = 0; tile < has_pair.size(); tile++) {
                const auto row = std::size_t(bytes_of(Index(has_pair.size())));
                const bool found = term.bits[std::size_t(block) * row + tile / 8] >> tile % 8 & 1;
                // Rows that are ignored may set one, too.
                if (found != has_pair[tile] && (has_pair[tile] || last <= rows.n_valid))
                    throw Wrong(term.name + ": the bit of block " + std::to_string(block) +
                                " and tile " + std::to_string(tile));
            }
        }
    }

    static void expect(double found, double expected, double apart, const std::string& what,
                       int row) {
        if (found == expected || std::fabs(found - expected) <= apart) return;
        throw Wrong(what + " of row " + std::to_string(row) + " is " + std::to_string(found) +
                    ", not " + std::to_string(expected) + ", within " + std::to_string(apart));
    }

    Problem& problem_;
    const Shaped& shaped_;
    std::vector<Term>& terms_;
    ShapeFacts facts_;
    int panels_;
    Exact<Index> band_;
};

}  // namespace pairops::cuda
