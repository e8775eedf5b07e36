#include "engine.h"

#include <cstdarg>
Mem g_mem;
string fmt(const char* f, ...) {
  char b[4096];
  va_list ap;
  va_start(ap, f);
  vsnprintf(b, sizeof b, f, ap);
  va_end(ap);
  return b;
}

// ---------------------------------------------------------------- memory ranges
Range* Mem::find(u64 a) {
  size_t lo = 0, hi = rs.size();
  while (lo < hi) {
    size_t mid = (lo + hi) / 2;
    if (rs[mid]->base <= a)
      lo = mid + 1;
    else
      hi = mid;
  }
  if (lo == 0) return nullptr;
  Range* r = rs[lo - 1];
  return a < r->base + r->size ? r : nullptr;
}
Range* Mem::add(void* host, u64 size, u64 mis, bool init, const char* name) {
  Range* r = new Range;
  r->base = ((next + 511) & ~511ull) + mis;
  r->size = size;
  next = r->base + size + (1 << 16);
  r->id = nextid++;
  r->name = name ? name : "";
  if (!host) {
    r->host = (u8*)calloc(size ? size : 1, 1);
    r->own = true;
  } else
    r->host = (u8*)host;
  r->shadow = (u8*)calloc(size ? size : 1, 1);
  if (init) memset(r->shadow, 1, size);
  rs.insert(std::lower_bound(rs.begin(), rs.end(), r, [](Range* a, Range* b) { return a->base < b->base; }), r);
  return r;
}
void Mem::remove(int id) {
  for (size_t i = 0; i < rs.size(); i++)
    if (rs[i]->id == id) {
      Range* r = rs[i];
      if (r->own) free(r->host);
      free(r->shadow);
      free(r->gw);
      delete r;
      rs.erase(rs.begin() + i);
      return;
    }
}
Range* Mem::byid(int id) {
  for (auto r : rs)
    if (r->id == id) return r;
  return nullptr;
}

// ---------------------------------------------------------------- errors
static string where(Launch* L, u32 pc) {
  Program& P = *L->P;
  if (pc >= P.cold.size()) return fmt("<pc %u>", pc);
  Cold& c = P.cold[pc];
  string s = fmt("`%.300s` (ptx line %d", c.text.c_str(), c.line);
  if (c.sline) {
    auto it = L->mod->files.find(c.file);
    s += fmt("; %s:%d", it == L->mod->files.end() ? "?" : it->second.c_str(), c.sline);
  }
  return s + ")";
}
static string thr(Warp& w, int lane) {
  Launch* L = w.L;
  u32 t = w.wid * 32 + lane;
  u32 bx = L->block[0], by = L->block[1];
  return fmt("block(%u,%u,%u) thread(%u,%u,%u)", w.blk->x, w.blk->y, w.blk->z, t % bx, (t / bx) % by, t / bx / by);
}
void fail(Warp& w, const Inst& I, int lane, const string& msg) {
  throw SimError(
      msg + fmt(" [kernel %s, ", w.L->P->name.c_str()) +
      (lane >= 0 ? thr(w, lane) + ", " : fmt("block(%u,%u,%u) warp %d, ", w.blk->x, w.blk->y, w.blk->z, w.wid)) +
      "at " + where(w.L, I.idx) + "]");
}
void report(Warp& w, const Inst& I, int lane, const char* kind, const string& msg) {
  static std::map<string, int> kinds;
  auto it = kinds.find(kind);
  int k;
  if (it == kinds.end()) {
    k = kinds.size();
    kinds[kind] = k;
  } else
    k = it->second;
  auto key = std::make_pair(k, I.idx);
  auto& e = w.L->reports[key];
  e.first++;
  if (e.first == 1) e.second = string(kind) + "|" + msg + " [" + thr(w, lane) + ", at " + where(w.L, I.idx) + "]";
}

// ---------------------------------------------------------------- happens-before clocks
static inline u32& wvc(Block* b, int w, int v) { return b->WVC[w * b->nw + v]; }
static void join_m(u32* M, u32 mask) {
  u32 J[32];
  memset(J, 0, sizeof J);
  for (u32 t = mask; t; t &= t - 1) {
    u32* v = M + __builtin_ctz(t) * 32;
    for (int k = 0; k < 32; k++) J[k] = std::max(J[k], v[k]);
  }
  for (u32 t = mask; t; t &= t - 1) {
    int l = __builtin_ctz(t);
    u32* v = M + l * 32;
    memcpy(v, J, sizeof J);
    v[l]++;
  }
}
// LVC: lane clocks ordered by __syncwarp and barriers. LVR: the same plus shuffles/votes, used for "write after read"
// only (the value read fed the shuffle).
void lane_join(Warp& w, u32 mask) {
  if (!w.LVC) return;
  join_m(w.LVC, mask);
  join_m(w.LVR, mask);
}
void lane_join_r(Warp& w, u32 mask) {
  if (w.LVR) join_m(w.LVR, mask);
}
void vc_release(Warp& w, u32 m, u64 key) {
  if (!w.LVC) return;
  auto& J = w.blk->mbJ[key];
  if (J.empty()) J.assign(w.blk->nw, 0);
  for (int k = 0; k < w.blk->nw; k++) J[k] = std::max(J[k], wvc(w.blk, w.wid, k));
  wvc(w.blk, w.wid, w.wid)++;
}
void vc_acquire(Warp& w, u32 m, u64 key) {
  if (!w.LVC) return;
  auto it = w.blk->mbJ.find(key);
  if (it == w.blk->mbJ.end()) return;
  for (int k = 0; k < w.blk->nw; k++) wvc(w.blk, w.wid, k) = std::max(wvc(w.blk, w.wid, k), it->second[k]);
  lane_join(w, w.alive);
}
static inline bool ordered(Warp& w, int lane, const RAcc& a, bool rd = false) {  // a happened before (w,lane)?
  int t = a.t - 1;
  int ow = t >> 5, ol = t & 31;
  if (ow == w.wid) return ol == lane || (rd ? w.LVR : w.LVC)[lane * 32 + ol] >= a.lc;
  return wvc(w.blk, w.wid, ow) >= a.wc;
}
static void race_check(Warp& w, const Inst& I, int lane, u64 off, u32 size, int mode, const u8 (*stage)[32]) {
  const u8* nv = stage ? stage[lane] : nullptr;
  Block* b = w.blk;
  u16 me = w.wid * 32 + lane + 1;
  u32 wc = wvc(b, w.wid, w.wid), lc = w.LVC[lane * 32 + lane], lr = w.LVR[lane * 32 + lane];
  u8 fl = (mode == 2 || I.strong == 2) ? 9 : I.strong ? 1 : 0;  // 1 volatile, 8 atomic
  auto exempt = [&](const RAcc& a) { return (fl & a.flags & 1) && (((a.t - 1) >> 5) != w.wid || (fl & a.flags & 8)); };
  auto one = [&](RaceRec& r, u32 o, u32 n) {
    auto rep = [&](const RAcc& a, const char* what) {
      u32 t = a.t - 1;
      u32 bx = w.L->block[0], by = w.L->block[1];
      report(w, I, lane, "race",
             fmt("shared-memory race: %s shared+0x%llx, conflicts with thread(%u,%u,%u) at ", what,
                 (unsigned long long)(off + o), t % bx, (t / bx) % by, t / bx / by) +
                 where(w.L, a.pc));
    };
    if (mode == 0) {
      if (r.w.t && r.w.t != me && !exempt(r.w) && !ordered(w, lane, r.w)) {
        if (r.w.flags & 2)
          w.L->st->benign_races++;
        else
          rep(r.w, "read after unordered write of");
      }
      if (r.r0.t != me) {
        if (r.r0.t && ((r.r0.t - 1) >> 5) != ((me - 1) >> 5))
          r.r2 = r.r0;
        else
          r.r1 = r.r0;
      }
      r.r0 = RAcc{me, fl, wc, lr, I.idx, w.L->seq};
    } else {
      bool same = nv && mode == 1 && memcmp(nv + o, b->smem.data() + off + o, n) == 0;
      auto chk = [&](RAcc& a, const char* what) {
        if (a.t && a.t != me && !exempt(a) && !ordered(w, lane, a, &a != &r.w)) {
          if (same || (&a == &r.w && nv && a.seq == w.L->seq && memcmp(stage[(a.t - 1) & 31] + o, nv + o, n) == 0))
            w.L->st->benign_races++;
          else
            rep(a, what);
        }
      };
      chk(r.w, "write after unordered write of");
      chk(r.r0, "write after unordered read of");
      chk(r.r1, "write after unordered read of");
      chk(r.r2, "write after unordered read of");
      r.w = RAcc{me, (u8)(fl | (same ? 2 : 0)), wc, lc, I.idx, w.L->seq};
    }
  };
  for (u32 o = 0; o < size;) {
    u64 a = off + o;
    u64 wd = a >> 2;
    if (!(a & 3) && size - o >= 4 && !b->mixed[wd]) {
      one(b->race[wd * 4], o, 4);
      o += 4;
      continue;
    }
    if (!b->mixed[wd]) {
      b->mixed[wd] = 1;
      for (int k = 1; k < 4; k++) b->race[wd * 4 + k] = b->race[wd * 4];
    }
    one(b->race[a], o, 1);
    o++;
  }
}

// ---------------------------------------------------------------- weak memory (store buffer)
static void sb_drain(Block* b, std::unordered_map<u64, SBEntry>::iterator it) {
  u64 wa = it->first << 2;
  Range* r = nullptr;
  for (int k = 0; k < 4; k++)
    if (it->second.mask >> k & 1) {
      if (!r) r = g_mem.find(wa + k);
      if (r) {
        r->host[wa + k - r->base] = it->second.val >> (8 * k);
        r->shadow[wa + k - r->base] |= 5;
      }
    }
}
static void sb_drain_addr(Block* b, u64 a, u32 size) {
  for (u64 wd = a >> 2; wd <= (a + size - 1) >> 2; wd++) {
    auto it = b->sb.find(wd);
    if (it != b->sb.end()) {
      sb_drain(b, it);
      b->sb.erase(it);
    }
  }
}
static void sb_drain_all(Block* b) {
  for (auto it = b->sb.begin(); it != b->sb.end(); ++it) sb_drain(b, it);
  b->sb.clear();
}
void do_fence(Warp& w, const Inst& I, u32 m) {
  w.L->st->fences += __builtin_popcount(m);
  if (!w.L->o.weak_memory || w.blk->sb.empty() || I.fence_before == 2 /*cta*/) return;
  Block* b = w.blk;
  for (auto it = b->sb.begin(); it != b->sb.end();) {
    bool ok = false;
    for (u32 t = m; t && !ok; t &= t - 1) {
      int l = __builtin_ctz(t);
      if (it->second.tid == w.wid * 32 + l)
        ok = true;
      else {
        RAcc a;
        a.t = it->second.tid + 1;
        a.wc = it->second.wc;
        a.lc = it->second.lc;
        ok = ordered(w, l, a);
      }
    }
    if (ok) {
      sb_drain(b, it);
      it = b->sb.erase(it);
    } else
      ++it;
  }
}
void finish_store(Warp& w, const Inst& I, const u64* A, u32 size) {
  Block* b = w.blk;
  for (u32 t = w.weakmask; t; t &= t - 1) {
    int l = __builtin_ctz(t);
    u16 tid = w.wid * 32 + l;
    u32 wc = wvc(b, w.wid, w.wid), lc = w.LVC[l * 32 + l];
    for (u32 o = 0; o < size;) {
      u64 a = A[l] + o;
      u64 wd = a >> 2;
      u32 k0 = a & 3, n = std::min(4 - k0, size - o);
      auto it = b->sb.find(wd);
      if (it != b->sb.end() && it->second.tid != tid) {
        sb_drain(b, it);
        it->second.mask = 0;
      }
      SBEntry& e = it == b->sb.end() ? b->sb[wd] : it->second;
      if (it == b->sb.end()) e = SBEntry{0, 0, tid, wc, lc};
      e.tid = tid;
      e.wc = wc;
      e.lc = lc;
      for (u32 k = 0; k < n; k++) {
        e.mask |= 1 << (k0 + k);
        e.val = (e.val & ~(0xffu << (8 * (k0 + k)))) | ((u32)w.tmp[l][o + k] << (8 * (k0 + k)));
      }
      o += n;
    }
  }
  w.weakmask = 0;
}

// ---------------------------------------------------------------- access
static const char* mname(int mode) { return mode == 0 ? "read" : mode == 1 ? "write" : "atomic access"; }
static void acc_shared(Warp& w, const Inst& I, u32 m, const u64* A, u64 sub, u8** H, u32 size, int mode,
                       const u8 (*stage)[32]) {
  Block* b = w.blk;
  Launch* L = w.L;
  u32 tot = L->shtotal;
  Stats& st = *L->st;
  u8* sm = b->smem.data();
  for (u32 t = m; t; t &= t - 1) {
    int l = __builtin_ctz(t);
    u64 a = A[l] - sub;
    if (a + size > tot || a > tot)
      fail(w, I, l,
           fmt("out-of-bounds shared %s of %u bytes at shared+0x%llx (block has %u bytes)", mname(mode), size,
               (unsigned long long)a, tot));
    if (a & (size - 1))
      fail(w, I, l, fmt("misaligned shared %s of %u bytes at shared+0x%llx", mname(mode), size, (unsigned long long)a));
    H[l] = sm + a;
    u8* sh = b->sshadow.data() + a;
    if (!(sh[0] & sh[size - 1] & 0x80))
      fail(w, I, l,
           fmt("out-of-bounds shared %s of %u bytes at shared+0x%llx (outside every shared variable)", mname(mode),
               size, (unsigned long long)a));
    if (mode != 1 && L->o.check_uninit)
      for (u32 k = 0; k < size; k++)
        if (!(sh[k] & 1)) {
          report(w, I, l, "uninit",
                 fmt("read of uninitialised shared memory at shared+0x%llx", (unsigned long long)(a + k)));
          break;
        }
    if (L->o.check_races) race_check(w, I, l, a, size, mode, stage);
    if (mode != 0)
      for (u32 k = 0; k < size; k++) sh[k] |= 1;
  }
  int n = __builtin_popcount(m);
  if (mode == 2) {
    st.satom_req++;
    st.satom_ops += n;
    return;
  }
  // wavefronts
  u32 per = size <= 4 ? 32 : 128 / size, wf = 0, ideal = 0;
  for (u32 g = 0; g < 32; g += per) {
    u32 gm = m & (per == 32 ? FULL : ((1u << per) - 1) << g);
    if (!gm) continue;
    ideal++;
    u32 cnt[32];
    u32 words[32][4];
    memset(cnt, 0, sizeof cnt);
    u32 mx = 1;
    bool big = false;
    for (u32 t = gm; t; t &= t - 1) {
      int l = __builtin_ctz(t);
      u32 a = (u32)(A[l] - sub) >> 2;
      for (u32 k = 0; k < std::max(1u, size / 4); k++) {
        u32 wd = a + k, bk = wd & 31;
        u32 c = std::min(cnt[bk], 4u);
        bool dup = false;
        for (u32 q = 0; q < c; q++) dup |= words[bk][q] == wd;
        if (!dup) {
          if (c < 4)
            words[bk][c] = wd;
          else
            big = true;
          cnt[bk]++;
          mx = std::max(mx, cnt[bk]);
        }
      }
    }
    if (big) {
      vector<u32> v[32];
      mx = 1;
      for (u32 t = gm; t; t &= t - 1) {
        int l = __builtin_ctz(t);
        u32 a = (u32)(A[l] - sub) >> 2;
        for (u32 k = 0; k < std::max(1u, size / 4); k++) {
          u32 wd = a + k;
          auto& q = v[wd & 31];
          if (std::find(q.begin(), q.end(), wd) == q.end()) {
            q.push_back(wd);
            mx = std::max<u32>(mx, q.size());
          }
        }
      }
    }
    wf += mx;
  }
  if (mode == 0) {
    st.sld_req++;
    st.sld_wavefronts += wf;
    st.sld_ideal += ideal;
    st.sld_bytes += (u64)n * size;
  } else {
    st.sst_req++;
    st.sst_wavefronts += wf;
    st.sst_ideal += ideal;
    st.sst_bytes += (u64)n * size;
  }
}
static void grace(Warp& w, const Inst& I, int l, u64 a, u32 size, int mode, const u8 (*stage)[32], Range* r, u64 off) {
  const u8* nv = stage ? stage[l] : nullptr;  // unordered plain accesses of threads of one block to global memory
                                              // (read-after-write, write-after-write)
  Block* b = w.blk;
  u16 me = w.wid * 32 + l + 1;
  u32 wc = wvc(b, w.wid, w.wid), lc = w.LVC[l * 32 + l];
  bool same = nv && memcmp(nv, r->host + off, size) == 0;
  for (u32 o = 0; o < size;) {
    u64 wd = (a + o) >> 2;
    u32 k0 = (a + o) & 3, n = std::min(4 - k0, size - o);
    auto it = b->gwr.find(wd);
    if (it == b->gwr.end()) {
      if (mode == 0) {
        o += n;
        continue;
      }
      it = b->gwr.emplace(wd, std::array<RAcc, 4>()).first;
    }
    for (u32 k = k0; k < k0 + n; k++) {
      RAcc& p = it->second[k];
      if (p.t && p.t != me && !same && !ordered(w, l, p) &&
          !(nv && p.seq == w.L->seq && memcmp(stage[(p.t - 1) & 31] + o, nv + o, n) == 0)) {
        u32 t = p.t - 1, bx = w.L->block[0], by = w.L->block[1];
        report(w, I, l, "grace",
               fmt("global-memory race inside a block: %s of buffer '%s'+0x%llx after unordered write by "
                   "thread(%u,%u,%u) at ",
                   mname(mode), r->name.c_str(), (unsigned long long)(off + o), t % bx, t / bx % by, t / bx / by) +
                   where(w.L, p.pc));
        break;
      }
    }
    if (mode == 1)
      for (u32 k = k0; k < k0 + n; k++) it->second[k] = RAcc{me, 0, wc, lc, I.idx, w.L->seq};
    o += n;
  }
}
static inline u64 rep1(u32 size, u8 v) { return 0x0101010101010101ull * v & maskw(size); }
static void acc_global(Warp& w, const Inst& I, u32 m, const u64* A, u8** H, u32 size, int mode, bool cst,
                       const u8 (*stage)[32]) {
  Launch* L = w.L;
  Stats& st = *L->st;
  Block* b = w.blk;
  Range* r = nullptr;
  if (I.cache >= 0 && I.cache < (int)g_mem.rs.size()) r = g_mem.rs[I.cache];
  u64 sec[64];
  int ns = 0;
  u64 last = ~0ull;
  bool mono = true;
  Range* r0 = nullptr;
  u32 cnt = 0;
  u64 smask = 0;
  auto flush = [&]() {
    if (!r0 || !cnt) return;
    int u = ns;
    if (!mono) {
      std::sort(sec, sec + ns);
      u = std::unique(sec, sec + ns) - sec;
    }
    if (mode == 0) {
      st.gld_sectors += u;
      r0->ld_sectors += u;
      r0->ld_req++;
      r0->ld_bytes += (u64)cnt * size;
      st.gld_bytes += (u64)cnt * size;
    } else if (mode == 1) {
      st.gst_sectors += u;
      r0->st_sectors += u;
      r0->st_req++;
      r0->st_bytes += (u64)cnt * size;
      st.gst_bytes += (u64)cnt * size;
    } else {
      st.gatom_sectors += u;
      r0->atom_req++;
      r0->atom_ops += cnt;
      st.gatom_ops += cnt;
    }
    ns = 0;
    last = ~0ull;
    mono = true;
    cnt = 0;
  };
  for (u32 t = m; t; t &= t - 1) {
    int l = __builtin_ctz(t);
    u64 a = A[l];
    if (!r || a < r->base || a + size > r->base + r->size) {
      r = g_mem.find(a);
      if (!r || a + size > r->base + r->size) {
        string near;
        for (auto q : g_mem.rs) {
          if (a >= q->base + q->size && a < q->base + q->size + (1 << 16))
            near = fmt(" - %lld bytes past the end of buffer '%s' (%llu bytes)", (long long)(a - q->base - q->size),
                       q->name.c_str(), (unsigned long long)q->size);
          else if (a < q->base && a + 4096 > q->base)
            near = fmt(" - %lld bytes before buffer '%s'", (long long)(q->base - a), q->name.c_str());
          else if (a >= q->base && a < q->base + q->size)
            near =
                fmt(" - runs over the end of buffer '%s' (%llu bytes)", q->name.c_str(), (unsigned long long)q->size);
        }
        fail(w, I, l,
             fmt("out-of-bounds global %s of %u bytes at address 0x%llx%s", mname(mode), size, (unsigned long long)a,
                 near.c_str()));
      }
      I.cache =
          std::lower_bound(g_mem.rs.begin(), g_mem.rs.end(), r, [](Range* x, Range* y) { return x->base < y->base; }) -
          g_mem.rs.begin();
    }
    if (a & (size - 1))
      fail(w, I, l,
           fmt("misaligned global %s of %u bytes at address 0x%llx (buffer '%s'+0x%llx)", mname(mode), size,
               (unsigned long long)a, r->name.c_str(), (unsigned long long)(a - r->base)));
    if (r != r0) {
      flush();
      r0 = r;
    }
    u64 off = a - r->base;
    H[l] = r->host + off;
    cnt++;
    u64 s = a >> 5;
    if (s != last) {
      if (ns && s < sec[ns - 1]) mono = false;
      sec[ns++] = s;
      last = s;
      if (size > 32) sec[ns++] = s + 1;
    }
    if (r->ro && mode) fail(w, I, l, fmt("write to read-only buffer '%s'", r->name.c_str()));
    if (L->o.track) {
      u8* sh = r->shadow + off;
      if (mode != 1) {
        bool bad = false, hasw = false;
        if (size <= 8) {
          u64 v = 0;
          memcpy(&v, sh, size);
          bad = (v & rep1(size, 1)) != rep1(size, 1);
          hasw = v & rep1(size, 4);
          v |= rep1(size, 2);
          memcpy(sh, &v, size);
        } else
          for (u32 k = 0; k < size; k++) {
            bad |= !(sh[k] & 1);
            hasw |= sh[k] & 4;
            sh[k] |= 2;
          }
        if (bad && L->o.weak_memory && !b->sb.empty()) {
          bad = false;
          for (u32 k = 0; k < size; k++)
            if (!(sh[k] & 1)) {
              auto it = b->sb.find((a + k) >> 2);
              if (it == b->sb.end() || !(it->second.mask >> ((a + k) & 3) & 1)) bad = true;
            }
        }
        if (bad && L->o.check_uninit)
          report(w, I, l, "uninit",
                 fmt("%s of uninitialised global memory, buffer '%s'+0x%llx", mname(mode), r->name.c_str(),
                     (unsigned long long)off));
        if (hasw && I.nc && L->o.check_races)
          report(
              w, I, l, "nc",
              fmt("ld.global.nc (const __restrict__/__ldg) reads memory written in the same launch, buffer '%s'+0x%llx",
                  r->name.c_str(), (unsigned long long)off));
        if (mode == 0 && hasw && L->o.check_races && !I.strong && !b->gwr.empty())
          grace(w, I, l, a, size, 0, nullptr, r, off);
      }
      if (mode != 0) {
        bool weak = mode == 1 && L->o.weak_memory && !I.strong;
        u8 v8 = weak ? 4 : 5;
        if (size <= 8) {
          u64 v = 0;
          memcpy(&v, sh, size);
          v |= rep1(size, v8);
          memcpy(sh, &v, size);
        } else
          for (u32 k = 0; k < size; k++) sh[k] |= v8;
        if (L->o.check_races && mode == 1 && !I.strong) {
          grace(w, I, l, a, size, 1, stage, r, off);
          if (!r->gw) r->gw = (u32*)calloc(r->size, 4);
          u32 me = (u32)b->lin + 1;
          for (u32 k = 0; k < size; k++) {
            u32& g = r->gw[off + k];
            if (g && g != me) {
              report(
                  w, I, l, "gww",
                  fmt("two blocks (%u and %u, linear) write the same global byte without an atomic, buffer '%s'+0x%llx",
                      g - 1, me - 1, r->name.c_str(), (unsigned long long)(off + k)));
            }
            g = me;
          }
        }
      }
    }
    if (L->o.weak_memory) {
      if (mode == 0) {
        if (!b->sb.empty()) {
          bool hit = false;
          for (u64 wd = a >> 2; wd <= (a + size - 1) >> 2; wd++) {
            auto it = b->sb.find(wd);
            if (it != b->sb.end()) {
              if (!hit) {
                hit = true;
                memcpy(w.tmp[l], H[l], size);
                H[l] = w.tmp[l];
              }
              for (int k = 0; k < 4; k++)
                if (it->second.mask >> k & 1) {
                  u64 q = wd * 4 + k;
                  if (q >= a && q < a + size) w.tmp[l][q - a] = it->second.val >> (8 * k);
                }
            }
          }
        }
      } else if (mode == 1 && !I.strong) {
        H[l] = w.tmp[l];
        w.weakmask |= 1u << l;
      } else if (!b->sb.empty())
        sb_drain_addr(b, a, size);
    }
  }
  flush();
  if (mode == 0) {
    if (cst)
      ;
    st.gld_req++;
  } else if (mode == 1)
    st.gst_req++;
  else
    st.gatom_req++;
}
void access(Warp& w, const Inst& I, u32 m, const u64* A, u8** H, u32 size, int mode, const u8 (*stage)[32]) {
  Launch* L = w.L;
  Stats& st = *L->st;
  L->seq++;
  switch (I.space) {
    case SP_GLOBAL:
    case SP_CONST:
      acc_global(w, I, m, A, H, size, mode, I.space == SP_CONST, stage);
      return;
    case SP_SHARED: {  // shared::cluster addresses of own CTA may also be generic
      u32 g = 0;
      for (u32 t = m; t; t &= t - 1) {
        int l = __builtin_ctz(t);
        if (A[l] >= SHARED_BASE && A[l] < SHARED_BASE + WIN) g |= 1u << l;
      }
      if (g) fail(w, I, __builtin_ctz(g), "generic address used with a .shared access");
      acc_shared(w, I, m, A, 0, H, size, mode, stage);
      return;
    }
    case SP_LOCAL: {
      for (u32 t = m; t; t &= t - 1) {
        int l = __builtin_ctz(t);
        u64 a = A[l];
        if (a + size > L->P->localsize || a > L->P->localsize)
          fail(w, I, l,
               fmt("out-of-bounds local %s at local+0x%llx (thread has %u bytes)", mname(mode), (unsigned long long)a,
                   L->P->localsize));
        if (a & (size - 1))
          fail(w, I, l,
               fmt("misaligned local %s of %u bytes at local+0x%llx", mname(mode), size, (unsigned long long)a));
        H[l] = w.local + (u64)l * L->P->localsize + a;
      }
      if (mode == 0)
        st.local_ld_bytes += (u64)size * __builtin_popcount(m);
      else
        st.local_st_bytes += (u64)size * __builtin_popcount(m);
      return;
    }
    case SP_PARAM: {
      for (u32 t = m; t; t &= t - 1) {
        int l = __builtin_ctz(t);
        u64 a = A[l];
        if (mode) fail(w, I, l, "write to kernel parameter space");
        if (a + size > L->params.size() || a > L->params.size())
          fail(w, I, l, fmt("out-of-bounds param read at param+0x%llx", (unsigned long long)a));
        H[l] = L->params.data() + a;
      }
      return;
    }
    default: {  // generic
      u32 sh = 0, lo = 0, pa = 0;
      for (u32 t = m; t; t &= t - 1) {
        int l = __builtin_ctz(t);
        u64 a = A[l];
        if (a >= PARAM_BASE) {
          if (a >= SHARED_BASE && a < SHARED_BASE + WIN)
            sh |= 1u << l;
          else if (a >= LOCAL_BASE && a < LOCAL_BASE + WIN)
            lo |= 1u << l;
          else if (a < PARAM_BASE + WIN)
            pa |= 1u << l;
        }
      }
      u32 gl = m & ~(sh | lo | pa);
      u64 B[32];
      Inst J;
      if (sh) acc_shared(w, I, sh, A, SHARED_BASE, H, size, mode, stage);
      if (lo) {
        for (u32 t = lo; t; t &= t - 1) {
          int l = __builtin_ctz(t);
          B[l] = A[l] - LOCAL_BASE;
        }
        J = I;
        J.space = SP_LOCAL;
        access(w, J, lo, B, H, size, mode, stage);
      }
      if (pa) {
        for (u32 t = pa; t; t &= t - 1) {
          int l = __builtin_ctz(t);
          B[l] = A[l] - PARAM_BASE;
        }
        J = I;
        J.space = SP_PARAM;
        access(w, J, pa, B, H, size, mode, stage);
      }
      if (gl) acc_global(w, I, gl, A, H, size, mode, false, stage);
    }
  }
}

// ---------------------------------------------------------------- block set-up
static void init_block(Launch& L, Block& b, u64 lin) {
  Program& P = *L.P;
  b.L = &L;
  b.lin = lin;
  b.x = lin % L.grid[0];
  b.y = lin / L.grid[0] % L.grid[1];
  b.z = lin / L.grid[0] / L.grid[1];
  b.nthreads = L.block[0] * L.block[1] * L.block[2];
  b.nalive = b.nthreads;
  b.nw = (b.nthreads + 31) / 32;
  b.done = false;
  b.sb.clear();
  b.mbJ.clear();
  b.gwr.clear();
  bool fresh = b.warps.empty();
  if (fresh) b.warps = vector<Warp>(b.nw);
  b.regs.resize((u64)b.nw * P.regbytes + 64);
  b.local.resize((u64)b.nw * 32 * P.localsize);
  b.smem.assign(L.shtotal + 64, 0);
  b.sshadow.assign(L.shtotal + 64, 0);
  // poison
  if (L.o.check_uninit) {
    for (size_t i = 0; i + 4 <= b.smem.size(); i += 4) {
      u32 v = 0x7fbad0aau;
      memcpy(&b.smem[i], &v, 4);
    }
    for (size_t i = 0; i + 4 <= b.local.size(); i += 4) {
      u32 v = 0x7fbad0bbu;
      memcpy(&b.local[i], &v, 4);
    }
    for (size_t i = 0; i + 4 <= b.regs.size(); i += 4) {
      u32 v = 0x7fbad0ccu;
      memcpy(&b.regs[i], &v, 4);
    }
  }
  for (auto& v : P.svars)
    for (u32 k = 0; k < v.second; k++) b.sshadow[v.first + k] |= 0x80;
  if (L.shdyn)
    for (u32 k = 0; k < L.shdyn; k++) b.sshadow[P.sdyn_off + k] |= 0x80;
  bool vc = L.o.check_races || L.o.weak_memory;
  if (L.o.check_races) {
    b.race.assign(L.shtotal + 64, RaceRec());
    b.mixed.assign(L.shtotal / 4 + 16, 0);
  }
  if (vc) {
    b.WVC.assign(b.nw * b.nw, 0);
    b.LVCs.assign((u64)b.nw * 2048, 0);
  }
  for (int i = 0; i < 17; i++) b.bar[i] = Barrier();
  u64 rb = ((u64)b.regs.data() + 63) & ~63ull;
  for (int i = 0; i < b.nw; i++) {
    Warp& w = b.warps[i];
    w.R = (u8*)(rb + (u64)i * P.regbytes);
    w.cp = P.cpool.data();
    w.blk = &b;
    w.L = &L;
    w.wid = i;
    w.cc = 0;
    w.local = b.local.data() + (u64)i * 32 * P.localsize;
    int n = std::min(32, b.nthreads - i * 32);
    w.alive = w.init = n == 32 ? FULL : (1u << n) - 1;
    w.waitW = w.waitB = 0;
    w.weakmask = 0;
    memset(w.pc, 0, sizeof w.pc);
    for (auto& c : w.cstack) c.clear();
    for (auto& c : w.cpa) c.clear();
    memset(w.cpgroup, 0, sizeof w.cpgroup);
    if (vc) {
      w.LVC = b.LVCs.data() + i * 2048;
      w.LVR = w.LVC + 1024;
      for (int l = 0; l < 32; l++) w.LVC[l * 32 + l] = w.LVR[l * 32 + l] = 1;
      wvc(&b, i, i) = 1;
    } else
      w.LVC = w.LVR = nullptr;
    for (auto& s : P.special) {
      u32* p = (u32*)(w.R + s.second);
      const string& nm = s.first;
      for (int l = 0; l < 32; l++) {
        u32 t = i * 32 + l, v = 0;
        u32 bx = L.block[0], by = L.block[1];
        if (nm == "%tid.x")
          v = t % bx;
        else if (nm == "%tid.y")
          v = t / bx % by;
        else if (nm == "%tid.z")
          v = t / bx / by;
        else if (nm == "%ntid.x")
          v = L.block[0];
        else if (nm == "%ntid.y")
          v = L.block[1];
        else if (nm == "%ntid.z")
          v = L.block[2];
        else if (nm == "%ctaid.x")
          v = b.x;
        else if (nm == "%ctaid.y")
          v = b.y;
        else if (nm == "%ctaid.z")
          v = b.z;
        else if (nm == "%nctaid.x")
          v = L.grid[0];
        else if (nm == "%nctaid.y")
          v = L.grid[1];
        else if (nm == "%nctaid.z")
          v = L.grid[2];
        else if (nm == "%laneid")
          v = l;
        else if (nm == "%warpid")
          v = i;
        else if (nm == "%nwarpid")
          v = 64;
        else if (nm == "%smid")
          v = lin % 108;
        else if (nm == "%nsmid")
          v = 108;
        else if (nm == "%lanemask_eq")
          v = 1u << l;
        else if (nm == "%lanemask_lt")
          v = (1u << l) - 1;
        else if (nm == "%lanemask_le")
          v = (1u << l) | ((1u << l) - 1);
        else if (nm == "%lanemask_gt")
          v = ~((1u << l) | ((1u << l) - 1));
        else if (nm == "%lanemask_ge")
          v = ~((1u << l) - 1);
        else if (nm == "%envreg1")
          v = L.envreg >> 32;
        else if (nm == "%envreg2")
          v = (u32)L.envreg;
        else if (nm == "%dynamic_smem_size")
          v = L.shdyn;
        else if (nm == "%total_smem_size")
          v = L.shtotal;
        else if (nm == "%aggr_smem_size")
          v = L.shtotal;
        else if (nm == "%clusterid.x")
          v = b.x;
        else if (nm == "%clusterid.y")
          v = b.y;
        else if (nm == "%clusterid.z")
          v = b.z;
        else if (nm == "%nclusterid.x")
          v = L.grid[0];
        else if (nm == "%nclusterid.y")
          v = L.grid[1];
        else if (nm == "%nclusterid.z")
          v = L.grid[2];
        else if (nm.rfind("%cluster_nctarank", 0) == 0 || nm.rfind("%cluster_nctaid", 0) == 0)
          v = 1;
        else
          v = 0;
        p[l] = v;
      }
    }
  }
}
static void drain_orphans(Launch& L, size_t keep) {
  while (L.orphans.size() && L.norph > keep) {
    auto& m = L.orphans.front();
    for (auto it = m.begin(); it != m.end(); ++it) sb_drain(nullptr, it);
    L.norph -= m.size();
    L.orphans.pop_front();
  }
}
static void finish_block(Launch& L, Block& b) {
  if (!b.sb.empty()) {
    L.norph += b.sb.size();
    L.orphans.push_back(std::move(b.sb));
    b.sb.clear();
    drain_orphans(L, 4000000);
  }  // a finished block's unfenced stores stay invisible to the running ones (up to a limit)
  b.done = true;
  b.gwr.clear();
  L.st->blocks++;
  L.st->threads += b.nthreads;
}

// ---------------------------------------------------------------- barriers
static string block_state(Launch& L, Block& b) {
  std::map<std::pair<string, u32>, vector<u32>> g;
  string s;
  for (auto& w : b.warps)
    for (int l = 0; l < 32; l++)
      if (w.alive >> l & 1)
        g[{(w.waitB >> l & 1)   ? "wait at block barrier"
           : (w.waitW >> l & 1) ? "wait at warp-level sync"
                                : "run",
           w.pc[l]}]
            .push_back(w.wid * 32 + l);
  u32 ex = 0;
  for (auto& w : b.warps) ex += __builtin_popcount(w.init & ~w.alive);
  for (auto& e : g) {
    s += fmt("\n    %zu thread(s) (linear ids %u..%u) %s at ", e.second.size(), e.second.front(), e.second.back(),
             e.first.first.c_str()) +
         where(&L, e.first.second);
  }
  if (ex) s += fmt("\n    %u thread(s) have exited", ex);
  return s;
}
static void try_barrier(Launch& L, Block& b, int id) {
  Barrier& B = b.bar[id];
  if (!B.arrived) return;
  u32 expect = B.expected ? B.expected : (u32)b.nalive;
  if (B.arrived < expect) return;
  bool vc = !B.J.empty();
  u32 exited = b.nthreads - b.nalive;
  bool any = false;
  for (auto& w : b.warps) {
    u32 rel = 0;
    u32 pc0 = ~0u;
    for (u32 t = w.waitB; t; t &= t - 1) {
      int l = __builtin_ctz(t);
      if (w.barid[l] == id) {
        rel |= 1u << l;
        if (pc0 == ~0u)
          pc0 = w.pc[l];
        else if (pc0 != w.pc[l]) {
          fail(w, L.P->code[w.pc[l]], l,
               "divergent barrier: threads of one warp wait at different barrier instructions, the other is " +
                   where(&L, pc0));
        }
      }
    }
    if (!rel) continue;
    const Inst& I = L.P->code[pc0];
    if ((w.alive & ~rel) && I.sub2 == 1 /*aligned*/)
      fail(w, I, __builtin_ctz(w.alive & ~rel),
           "divergent barrier: only part of the warp takes part in an aligned bar.sync");
    if (exited && !any && !B.expected && L.o.early_exit) {
      string m =
          fmt("%u thread(s) of the block exited before this block-wide barrier (allowed on sm_70+, formally risky)",
              exited);
      if (L.o.early_exit == 2) fail(w, I, __builtin_ctz(rel), "early exit before barrier: " + m);
      report(w, I, __builtin_ctz(rel), "warn-early-exit", m);
    }
    any = true;
    if (B.firstpc != pc0 && !B.expected)
      report(w, I, __builtin_ctz(rel), "warn-barrier-pc",
             "warps of one block meet at different barrier instructions; the other is " + where(&L, B.firstpc));
    if (I.nd) {  // bar.red
      if (I.sub == 1) {
        u32* d = w.D<u32>(I.d[0]);
        for (u32 t = rel; t; t &= t - 1) d[__builtin_ctz(t)] = B.acc_pop;
      } else {
        u32* d = w.D<u32>(I.d[0]);
        bool v = I.sub == 2 ? B.acc_and : B.acc_or;
        *d = v ? (*d | rel) : (*d & ~rel);
      }
    }
    if (vc) {
      lane_join(w, rel);
      for (int k = 0; k < b.nw; k++) wvc(&b, w.wid, k) = std::max(wvc(&b, w.wid, k), B.J[k]);
      wvc(&b, w.wid, w.wid)++;
    }
    for (u32 t = rel; t; t &= t - 1) w.pc[__builtin_ctz(t)]++;
    w.waitB &= ~rel;
  }
  L.st->block_barriers++;
  B = Barrier();
}
static void arrive(Launch& L, Warp& w, const Inst& I, u32 m) {
  Block& b = *w.blk;  // barrier id operand s[0], count s[1] (optional), predicate s[2]
  for (u32 t = m; t;) {
    int l0 = __builtin_ctz(t);
    u32 id = w.S<u32>(I.s[0])[l0];
    u32 cnt = I.s[1].kind ? w.S<u32>(I.s[1])[l0] : 0;
    u32 grp = 0;
    for (u32 q = t; q; q &= q - 1) {
      int l = __builtin_ctz(q);
      if (w.S<u32>(I.s[0])[l] == id) grp |= 1u << l;
    }
    t &= ~grp;
    if (id > 16 || (id == 16 && I.sub2 != 7)) fail(w, I, l0, fmt("barrier id %u out of range", id));
    if (cnt & 31) fail(w, I, l0, fmt("barrier thread count %u is not a multiple of the warp size", cnt));
    Barrier& B = b.bar[id];
    if (B.arrived && B.expected != cnt)
      fail(w, I, l0, fmt("barrier %u used with different thread counts (%u and %u)", id, B.expected, cnt));
    if (!B.arrived) B.firstpc = I.idx;
    B.expected = cnt;
    u32 n = __builtin_popcount(grp);
    B.arrived += n;
    if (cnt && B.arrived > cnt)
      fail(w, I, l0, fmt("barrier %u: more threads arrived (%u) than its count %u", id, B.arrived, cnt));
    if (w.LVC) {
      if (B.J.empty()) B.J.assign(b.nw, 0);
      lane_join(w, grp);
      for (int k = 0; k < b.nw; k++) B.J[k] = std::max(B.J[k], wvc(&b, w.wid, k));
      if (I.sub == 9) wvc(&b, w.wid, w.wid)++;
    }
    if (I.nd) {
      u32 p = w.P(I.s[2]) & grp;
      B.acc_pop += __builtin_popcount(p);
      if (p != grp) B.acc_and = false;
      if (p) B.acc_or = true;
    }
    if (I.sub == 9) {
      for (u32 q = grp; q; q &= q - 1) w.pc[__builtin_ctz(q)] = I.idx + 1;
    } else {
      for (u32 q = grp; q; q &= q - 1) {
        int l = __builtin_ctz(q);
        w.barid[l] = id;
        w.pc[l] = I.idx;
      }
      w.waitB |= grp;
    }
    try_barrier(L, b, id);
  }
}
// ---------------------------------------------------------------- warp-level sync
static void mask_exited(Launch& L, Warp& w, const Inst& I, u32 M, int lane);
static void eval_wsync(Launch& L, Warp& w) {  // try to complete any pending warp-level sync
  bool again = true;
  while (again && w.waitW) {
    again = false;
    u32 t = w.waitW;
    while (t) {
      int l0 = __builtin_ctz(t);
      u32 pc = w.pc[l0], M = w.wmask[l0], g = 0;
      for (u32 q = t; q; q &= q - 1) {
        int l = __builtin_ctz(q);
        if (w.pc[l] == pc && w.wmask[l] == M) g |= 1u << l;
      }
      t &= ~g;
      u32 need = M & w.alive;
      if ((g & need) == need) {
        const Inst& I = L.P->code[pc];
        w.waitW &= ~g;
        if (M & w.init & ~w.alive) mask_exited(L, w, I, M, l0);
        I.fn(w, I, g);
        lane_join_r(w, g);
        L.st->warp_syncs++;
        for (u32 q = g; q; q &= q - 1) w.pc[__builtin_ctz(q)] = pc + 1;
        again = true;
      }
    }
  }
}
static void mask_exited(Launch& L, Warp& w, const Inst& I, u32 M, int lane) {
  u32 gone = M & w.init & ~w.alive;
  if (!gone || !L.o.early_exit) return;
  string m =
      fmt("warp-level sync: member mask 0x%08x names lanes (0x%08x) that have exited without executing it", M, gone);
  if (L.o.early_exit == 2) fail(w, I, lane, m);
  report(w, I, lane, "warn-mask-exited", m);
}
static void do_exit(Launch& L, Warp& w, u32 m) {
  w.alive &= ~m;
  w.blk->nalive -= __builtin_popcount(m);
  for (u32 t = m; t; t &= t - 1) {
    int l = __builtin_ctz(t);
    if (!w.cpa[l].empty()) w.cpa[l].clear();
  }
  if (w.waitW) eval_wsync(L, w);
  for (int i = 0; i < 17; i++)
    if (w.blk->bar[i].arrived && !w.blk->bar[i].expected) try_barrier(L, *w.blk, i);
}
static void setpc(Warp& w, u32 m, u32 pc) {
  for (u32 t = m; t; t &= t - 1) w.pc[__builtin_ctz(t)] = pc;
}

static void do_builtin(Warp& w, const Inst& I, const CallInfo& ci, u32 m) {
  Launch& L = *w.L;
  for (u32 t = m; t; t &= t - 1) {
    int l = __builtin_ctz(t);
    u8* lm = w.local + (u64)l * L.P->localsize;
    auto str = [&](u64 a) {
      string s;
      for (int k = 0; k < 1000; k++) {
        Range* r = g_mem.find(a + k);
        if (!r) break;
        char c = r->host[a + k - r->base];
        if (!c) break;
        s += c;
      }
      return s;
    };
    auto arg = [&](int i) {
      u64 v = 0;
      if (i < (int)ci.in.size()) memcpy(&v, lm + ci.in[i][0], std::min(8, ci.in[i][2]));
      return v;
    };
    if (ci.builtin == "__assertfail")
      fail(w, I, l, "device assert failed: " + str(arg(0)) + " at " + str(arg(1)) + fmt(":%u", (u32)arg(2)));
    else if (ci.builtin == "vprintf") {
      string f = str(arg(0));
      u64 va = arg(1);
      u64 o = va >= LOCAL_BASE ? va - LOCAL_BASE : 0;
      string out;
      auto get = [&](int n) {
        o = (o + n - 1) / n * n;
        u64 v = 0;
        if (o + n <= L.P->localsize) memcpy(&v, lm + o, n);
        o += n;
        return v;
      };
      if (va)
        for (size_t i = 0; i < f.size(); i++) {
          if (f[i] != '%') {
            out += f[i];
            continue;
          }
          if (f[i + 1] == '%') {
            out += '%';
            i++;
            continue;
          }
          string sp = "%";
          i++;
          int ll = 0;
          while (i < f.size() && strchr("-+ #0123456789.lhzjt", f[i])) {
            if (f[i] == 'l' || f[i] == 'z' || f[i] == 'j' || f[i] == 't')
              ll = 1;
            else if (f[i] != 'h')
              sp += f[i];
            i++;
          }
          char c = f[i];
          char buf[512];
          if (strchr("dixXuoc", c)) {
            sp += (c == 'c') ? "c" : string("ll") + c;
            u64 v = ll ? get(8) : get(4);
            if (!ll && (c == 'd' || c == 'i')) v = (s64)(s32)v;
            snprintf(buf, sizeof buf, sp.c_str(), v);
            out += buf;
          } else if (strchr("fFeEgGaA", c)) {
            sp += c;
            u64 v = get(8);
            double d;
            memcpy(&d, &v, 8);
            snprintf(buf, sizeof buf, sp.c_str(), d);
            out += buf;
          } else if (c == 's')
            out += str(get(8));
          else if (c == 'p') {
            snprintf(buf, sizeof buf, "0x%llx", (unsigned long long)get(8));
            out += buf;
          }
        }
      else
        out = f;
      if (L.out.size() < (1 << 20)) L.out += out;
    } else
      fail(w, I, l, "call of unsupported external function " + ci.builtin);
  }
}

// ---------------------------------------------------------------- main warp loop
static void run_warp(Launch& L, Warp& w, s64 quantum) {
  Program& P = *L.P;
  const Inst* code = P.code.data();
  Stats& st = *L.st;
  L.yield_now = false;
  while (quantum > 0) {
    u32 runnable = w.alive & ~(w.waitW | w.waitB);
    if (!runnable) return;
    u32 pc = ~0u, mask = 0, limit = ~0u;
    s64 steps = quantum;
    bool odd = false;
    u32 f = w.pc[__builtin_ctz(runnable)];
    bool uni = true;
    if (runnable == FULL) {
      for (int l = 0; l < 32; l++) uni &= w.pc[l] == f;
    } else
      for (u32 t = runnable; t; t &= t - 1) uni &= w.pc[__builtin_ctz(t)] == f;
    if (uni) {
      pc = f;
      mask = runnable;
    } else {
      for (u32 t = runnable; t; t &= t - 1) pc = std::min(pc, w.pc[__builtin_ctz(t)]);
      if ((L.random && (L.rng.next() & 7) == 0) || ++L.next_yield % 512 == 0) {
        int k = L.rng.next() % __builtin_popcount(runnable);
        u32 t = runnable;
        while (k--) t &= t - 1;
        u32 p2 = w.pc[__builtin_ctz(t)];
        if (p2 != pc) {
          pc = p2;
          odd = true;
        }
      }
      for (u32 t = runnable; t; t &= t - 1) {
        int l = __builtin_ctz(t);
        if (w.pc[l] == pc)
          mask |= 1u << l;
        else if (w.pc[l] > pc)
          limit = std::min(limit, w.pc[l]);
      }
      steps = std::min<s64>(quantum, odd ? 64 + (L.rng.next() & 1023) : 4096);
    }
    if (L.random && L.o.split_warps && (L.rng.next() & 3) == 0) {
      u32 sub = mask & L.rng.next();
      if (sub && sub != mask) {
        mask = sub;
        limit = ~0u;
        steps = std::min<s64>(steps, 1 + (L.rng.next() & 63));
      }
    }  // let some lanes run ahead
    s64 s0 = steps;
    u64 ti = 0;
    u32 nact = __builtin_popcount(mask);
    bool repick = false;
    while (steps > 0) {
      const Inst& I = code[pc];
      u32 m = mask;
      steps--;
      if (I.pred >= 0) {
        u32 p = *(u32*)(w.R + I.pred);
        m &= I.pneg ? ~p : p;
      }
      {
        u32 c = I.pred >= 0 ? __builtin_popcount(m) : nact;
        ti += c;
        st.cat[I.cat] += c;
      }
      switch (I.kind) {
        case K_NORMAL:
          if (m) I.fn(w, I, m);
          pc++;
          break;
        case K_NOP:
          pc++;
          break;
        case K_BRA:
          st.branches++;
          if (m == mask) {
            pc = I.target;
            if (pc <= I.idx && L.yield_now) {
            }
          } else if (!m)
            pc++;
          else {
            st.divergent_branches++;
            setpc(w, m, I.target);
            setpc(w, mask & ~m, pc + 1);
            repick = true;
            goto out;
          }
          break;
        case K_BRX: {
          st.branches++;
          const u32* ix = w.S<u32>(I.s[0]);
          auto& tab = P.btabs[I.imm];
          setpc(w, mask & ~m, pc + 1);
          for (u32 t = m; t; t &= t - 1) {
            int l = __builtin_ctz(t);
            if (ix[l] >= tab.size()) fail(w, I, l, "brx.idx index out of range");
            w.pc[l] = tab[ix[l]];
          }
          repick = true;
          goto out;
        }
        case K_CALL: {
          const CallInfo& ci = P.calls[I.imm];
          st.calls++;
          if (!ci.builtin.empty()) {
            if (m) do_builtin(w, I, ci, m);
            pc++;
            break;
          }
          for (u32 t = m; t; t &= t - 1) {
            int l = __builtin_ctz(t);
            u8* lm = w.local + (u64)l * P.localsize;
            for (auto& c : ci.in) memmove(lm + c[1], lm + c[0], c[2]);
            w.cstack[l].push_back(pc);
          }
          if (m == mask) {
            pc = I.target;
          } else {
            setpc(w, m, I.target);
            setpc(w, mask & ~m, pc + 1);
            repick = true;
            goto out;
          }
          break;
        }
        case K_RET: {
          if (m) {
            u32 ex = 0, rt = 0;
            for (u32 t = m; t; t &= t - 1) {
              int l = __builtin_ctz(t);
              if (w.cstack[l].empty())
                ex |= 1u << l;
              else
                rt |= 1u << l;
            }
            setpc(w, mask & ~m, pc + 1);
            for (u32 t = rt; t; t &= t - 1) {
              int l = __builtin_ctz(t);
              u32 cp = w.cstack[l].back();
              w.cstack[l].pop_back();
              const CallInfo& ci = P.calls[code[cp].imm];
              u8* lm = w.local + (u64)l * P.localsize;
              for (auto& c : ci.out) memmove(lm + c[1], lm + c[0], c[2]);
              w.pc[l] = cp + 1;
            }
            if (ex) do_exit(L, w, ex);
            repick = true;
            goto out;
          }
          pc++;
          break;
        }
        case K_EXIT:
          if (m) {
            setpc(w, mask & ~m, pc + 1);
            do_exit(L, w, m);
            repick = true;
            goto out;
          }
          pc++;
          break;
        case K_BAR:
          if (!m) {
            pc++;
            break;
          }
          setpc(w, mask & ~m, pc + 1);
          arrive(L, w, I, m);
          repick = true;
          goto out;
        case K_WSYNC: {
          if (!m) {
            pc++;
            break;
          }
          const u32* M = w.S<u32>(I.s[I.mix]);
          bool same = true;
          u32 M0 = M[__builtin_ctz(m)];
          for (u32 t = m; t; t &= t - 1) {
            int l = __builtin_ctz(t);
            same &= M[l] == M0;
            if (!(M[l] >> l & 1))
              fail(w, I, l, fmt("warp-level sync: executing lane %d is not in its member mask 0x%08x", l, M[l]));
          }
          if (same && (M0 & w.alive) == m && !w.waitW) {
            if (M0 & w.init & ~w.alive) mask_exited(L, w, I, M0, __builtin_ctz(m));
            I.fn(w, I, m);
            lane_join_r(w, m);
            st.warp_syncs++;
            pc++;
            break;
          }
          for (u32 t = m; t; t &= t - 1) {
            int l = __builtin_ctz(t);
            w.wmask[l] = M[l];
            w.pc[l] = pc;
          }
          w.waitW |= m;
          setpc(w, mask & ~m, pc + 1);
          eval_wsync(L, w);
          repick = true;
          goto out;
        }
        case K_YIELD:
          pc++;
          steps = 0;
          quantum = 0;
          break;
        case K_TRAP:
          if (m) fail(w, I, __builtin_ctz(m), "kernel executed trap");
          pc++;
          break;
        case K_UNSUP:
          if (m) fail(w, I, __builtin_ctz(m), "unsupported PTX instruction (" + P.cold[I.idx].why + ")");
          pc++;
          break;
      }
      if (pc >= limit) {
        setpc(w, mask, pc);
        repick = true;
        break;
      }
    }
  out:
    if (!repick) setpc(w, mask, pc);
    u64 used = s0 - steps;
    quantum -= used;
    st.warp_instr += used;
    st.thread_instr += ti;
    L.clock += used;
  }
}

static void run_launch(Launch& L) {
  u64 nb = (u64)L.grid[0] * L.grid[1] * L.grid[2];
  Program& P = *L.P;
  u32 nth = L.block[0] * L.block[1] * L.block[2];
  u64 per = (u64)((nth + 31) / 32) * (P.regbytes + 32 * P.localsize + (L.o.check_races ? 4096 : 0)) +
            L.shtotal * (L.o.check_races ? 90 : 2) + 4096;
  u64 res = L.o.resident > 0 ? L.o.resident : (L.random || L.o.weak_memory ? 16 : 4);
  u64 cap = std::max<u64>(1, (6ull << 30) / per);
  if (L.o.cooperative) {
    res = nb;
    if (res > cap)
      throw SimError(fmt("cooperative launch of %llu blocks needs too much memory", (unsigned long long)nb));
  }
  res = std::min(std::min(res, nb), cap);
  vector<u64> order;
  if (L.o.block_order) {
    order.resize(nb);
    for (u64 i = 0; i < nb; i++) order[i] = i;
    if (L.o.block_order == 2)
      std::reverse(order.begin(), order.end());
    else
      for (u64 i = nb; i > 1; i--) std::swap(order[i - 1], order[L.rng.next() % i]);
  }
  vector<std::unique_ptr<Block>> act;
  u64 nextb = 0;
  vector<std::unique_ptr<Block>> pool;
  auto start = [&]() {
    std::unique_ptr<Block> b;
    if (!pool.empty()) {
      b = std::move(pool.back());
      pool.pop_back();
    } else
      b.reset(new Block);
    init_block(L, *b, order.empty() ? nextb : order[nextb]);
    nextb++;
    act.push_back(std::move(b));
  };
  while (act.size() < res) start();
  L.st->max_resident = act.size();
  auto t0 = std::chrono::steady_clock::now();
  u64 lastdone = 0, iter = 0;
  vector<int> ord;
  while (!act.empty()) {
    u64 nact = act.size();
    for (u64 bi = 0; bi < nact; bi++) {
      u64 sel = L.random ? L.rng.next() % act.size() : bi;
      if (sel >= act.size()) break;
      Block& b = *act[sel];
      bool any = false;
      u32 st0 = L.random ? L.rng.next() % b.nw : 0;
      for (int k = 0; k < b.nw; k++) {
        Warp& w = b.warps[(k + st0) % b.nw];
        if (!(w.alive & ~(w.waitW | w.waitB))) continue;
        any = true;
        if (L.random && (L.rng.next() & 3) == 0) continue;
        s64 q = L.random ? 1 + (L.rng.next() & ((L.rng.next() & 1) ? 31 : 511)) : 2000;
        run_warp(L, w, q);
      }
      if (!any) {
        if (b.nalive == 0) {
          finish_block(L, b);
          lastdone = L.st->warp_instr;
          pool.push_back(std::move(act[sel]));
          act.erase(act.begin() + sel);
          nact = act.size();
          if (nextb < nb) {
            start();
          }
          break;
        }
        // some barrier may be completable only now; otherwise it is a deadlock
        throw SimError(
            fmt("deadlock in kernel %s, block(%u,%u,%u): no thread can run:", P.name.c_str(), b.x, b.y, b.z) +
            block_state(L, b));
      }
    }
    if (L.o.max_instr && L.st->warp_instr > L.o.max_instr)
      throw SimError(fmt("instruction limit reached (%llu warp instructions) in kernel %s - livelock? block(%u,%u,%u):",
                         (unsigned long long)L.st->warp_instr, P.name.c_str(), act[0]->x, act[0]->y, act[0]->z) +
                     block_state(L, *act[0]));
    if ((++iter & 15) == 0) {
      double dt = std::chrono::duration<double>(std::chrono::steady_clock::now() - t0).count();
      if (L.o.timeout_s > 0 && dt > L.o.timeout_s)
        throw SimError(fmt("time limit %.0f s reached in kernel %s - livelock? block(%u,%u,%u):", L.o.timeout_s,
                           P.name.c_str(), act[0]->x, act[0]->y, act[0]->z) +
                       block_state(L, *act[0]));
    }
    if (L.st->warp_instr - lastdone > 5000000 && nextb < nb && act.size() < cap) {
      lastdone = L.st->warp_instr;
      u64 add = act.size();
      for (u64 k = 0; k < add && nextb < nb && act.size() < cap; k++) start();
      L.st->max_resident = std::max<u64>(L.st->max_resident, act.size());
    }
  }
}

// ---------------------------------------------------------------- C API
static thread_local string g_err;
extern "C" {
const char* px_error() { return g_err.c_str(); }
void* px_load(const char* text) {
  try {
    auto M = std::make_unique<Module>();
    parse_module(*M, text);
    for (auto& v : M->vars)
      if ((v.second.space == SP_GLOBAL || v.second.space == SP_CONST) && !v.second.ext) {
        Range* r = g_mem.add(nullptr, v.second.size, 0, true, v.first.c_str());
        v.second.addr = r->base;
        memcpy(r->host, v.second.init.data(), std::min<u64>(v.second.init.size(), v.second.size));
        M->range_ids.push_back(r->id);
      }
    for (auto& v : M->vars)
      for (auto& rl : v.second.relocs) {
        auto it = M->vars.find(rl.second);
        Range* r = g_mem.find(v.second.addr);
        if (it != M->vars.end() && r) {
          u64 a = it->second.addr;
          memcpy(r->host + rl.first, &a, std::min<u64>(8, v.second.size - rl.first));
        }
      }
    return M.release();
  } catch (std::exception& e) {
    g_err = e.what();
    return nullptr;
  }
}
void px_free(void* m) {
  Module* M = (Module*)m;
  for (int id : M->range_ids) g_mem.remove(id);
  delete M;
}
int px_nkernels(void* m) { return ((Module*)m)->entries.size(); }
const char* px_kernel(void* m, int i) { return ((Module*)m)->entries[i].c_str(); }
int px_nparams(void* m, const char* k) { return ((Module*)m)->funcs[k].params.size(); }
int px_param(void* m, const char* k, int i, u32* off, u32* size, u32* ty) {
  auto& p = ((Module*)m)->funcs[k].params[i];
  *off = p.off;
  *size = p.size;
  *ty = p.ty;
  return 0;
}
int px_ntid(void* m, const char* k, int* mx, int* rq) {
  auto& f = ((Module*)m)->funcs[k];
  for (int i = 0; i < 3; i++) {
    mx[i] = f.maxntid[i];
    rq[i] = f.reqntid[i];
  }
  return 0;
}
int px_add(void* host, u64 size, u64 mis, int init, int ro, const char* name, u64* addr) {
  Range* r = g_mem.add(host, size, mis, init, name);
  r->ro = ro;
  *addr = r->base;
  return r->id;
}
void px_remove(int id) { g_mem.remove(id); }
void* px_host(u64 addr, u64* left) {
  Range* r = g_mem.find(addr);
  if (!r) return nullptr;
  *left = r->base + r->size - addr;
  return r->host + (addr - r->base);
}
int px_var(void* m, const char* name, u64* addr, u64* size) {
  auto& v = ((Module*)m)->vars;
  auto it = v.find(name);
  if (it == v.end()) return 1;
  *addr = it->second.addr;
  *size = it->second.size;
  return 0;
}
int px_vars(void* m, char* buf, int n) {
  string s;
  for (auto& v : ((Module*)m)->vars) s += v.first + "\n";
  snprintf(buf, n, "%s", s.c_str());
  return s.size();
}
int px_range_stats(int id, u64* out) {  // ld_bytes ld_sectors ld_req st_bytes st_sectors st_req atom_ops atom_req
                                        // unique_read unique_written uninit
  Range* r = g_mem.byid(id);
  if (!r) return 1;
  u64 ur = 0, uw = 0, ui = 0;
  for (u64 i = 0; i < r->size; i++) {
    u8 s = r->shadow[i];
    ur += s >> 1 & 1;
    uw += s >> 2 & 1;
    ui += !(s & 1);
  }
  u64 v[11] = {r->ld_bytes, r->ld_sectors, r->ld_req,   r->st_bytes, r->st_sectors,
               r->st_req,   r->atom_ops,   r->atom_req, ur,          uw,
               ui};
  memcpy(out, v, sizeof v);
  return 0;
}
int px_unwritten(int id, u8* out) {
  Range* r = g_mem.byid(id);
  if (!r) return 1;
  for (u64 i = 0; i < r->size; i++) out[i] = !(r->shadow[i] & 1);
  return 0;
}
// returns unsupported instruction list of a kernel
int px_unsup(void* m, const char* k, char* buf, int n) {
  try {
    Program* P = build(*(Module*)m, k);
    string s;
    for (auto& I : P->code)
      if (I.kind == K_UNSUP)
        s += fmt("line %d: %s (%s)\n", P->cold[I.idx].line, P->cold[I.idx].text.c_str(), P->cold[I.idx].why.c_str());
    snprintf(buf, n, "%s", s.c_str());
    return s.size();
  } catch (std::exception& e) {
    g_err = e.what();
    return -1;
  }
}
int px_launch(void* m, const char* kname, const u32* grid, const u32* block, u32 shmem, const u8* params, u64 plen,
              const Opts* o, Stats* st, char* rep, u64 replen, char* out, u64 outlen) {
  Module& M = *(Module*)m;
  Range* ws = nullptr;
  memset(st, 0, sizeof *st);
  rep[0] = 0;
  out[0] = 0;
  Launch L;
  int rc = 0;
  try {
    Program* P = build(M, kname);
    L.mod = &M;
    L.P = P;
    L.o = *o;
    L.st = st;
    memcpy(L.grid, grid, 12);
    memcpy(L.block, block, 12);
    L.shdyn = shmem;
    L.shtotal = P->sdyn_off + shmem;
    if (!P->uses_dyn && !shmem) L.shtotal = P->sstatic;
    L.params.assign(params, params + plen);
    L.random = o->seed != 0;
    if (o->seed) {
      L.rng.s = o->seed * 0x9E3779B97F4A7C15ull + 12345;
      for (int i = 0; i < 8; i++) L.rng.next();
    }
    L.fp_seed = o->seed;
    u64 nt = (u64)block[0] * block[1] * block[2];
    if (!nt || nt > 1024 || block[2] > 64) throw SimError(fmt("bad block size %ux%ux%u", block[0], block[1], block[2]));
    if (!grid[0] || !grid[1] || !grid[2] || grid[1] > 65535 || grid[2] > 65535) throw SimError("bad grid size");
    auto& f = M.funcs[kname];
    if (f.cluster > 1) throw SimError("thread block clusters larger than 1 are not supported");
    if (f.maxntid[0]) {
      u64 mx = (u64)f.maxntid[0] * std::max(1, f.maxntid[1]) * std::max(1, f.maxntid[2]);
      if (nt > mx)
        throw SimError(fmt("block of %llu threads exceeds __launch_bounds__ (%llu)", (unsigned long long)nt,
                           (unsigned long long)mx));
    }
    u32 maxsh = M.target >= 90                                        ? 227 * 1024
                : M.target == 86 || M.target == 89 || M.target == 120 ? 99 * 1024
                                                                      : 163 * 1024;
    if (P->sstatic > 48 * 1024) throw SimError("static shared memory over 48 KB");
    if (L.shtotal > maxsh + 2048) throw SimError(fmt("shared memory %u bytes over the limit of %u", L.shtotal, maxsh));
    for (auto r : g_mem.rs) {
      r->ld_bytes = r->ld_sectors = r->ld_req = r->st_bytes = r->st_sectors = r->st_req = r->atom_ops = r->atom_req = 0;
      if (o->track)
        for (u64 i = 0; i < r->size; i++) r->shadow[i] &= 1;
      if (r->gw) {
        free(r->gw);
        r->gw = nullptr;
      }
    }
    for (auto& I : P->code) I.cache = -1;
    if (o->cooperative) {
      ws = g_mem.add(nullptr, 1024, 0, true, "grid workspace");
      L.envreg = ws->base;
    }
    st->shared_static = P->sstatic;
    st->shared_total = L.shtotal;
    st->local_size = P->localsize;
    st->reg_bytes = P->regbytes;
    run_launch(L);
    drain_orphans(L, 0);
  } catch (std::exception& e) {
    g_err = e.what();
    rc = 1;
  }
  if (ws) g_mem.remove(ws->id);
  string s;
  for (auto& r : L.reports) s += fmt("%llu|", (unsigned long long)r.second.first) + r.second.second + "\x01";
  snprintf(rep, replen, "%s", s.c_str());
  snprintf(out, outlen, "%s", L.out.c_str());
  return rc;
}
}
