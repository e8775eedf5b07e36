#include <cctype>

#include "exec.h"
// ================================================================ helpers
static string trim(const string& s) {
  size_t a = s.find_first_not_of(" \t\r\n"), b = s.find_last_not_of(" \t\r\n");
  return a == string::npos ? "" : s.substr(a, b - a + 1);
}
static vector<string> split_top(const string& s, char sep) {
  vector<string> r;
  string c;
  int d = 0;
  for (char ch : s) {
    if (strchr("({[", ch)) d++;
    if (strchr(")}]", ch)) d--;
    if (ch == sep && !d) {
      r.push_back(trim(c));
      c.clear();
    } else
      c += ch;
  }
  c = trim(c);
  if (!c.empty() || !r.empty()) r.push_back(c);
  return r;
}
static Ty tyof(const string& t) {
  static const std::map<string, Ty> m = {
      {"u8", T_U8},     {"b8", T_U8},         {"s8", T_S8},         {"u16", T_U16},   {"b16", T_U16},
      {"s16", T_S16},   {"u32", T_U32},       {"b32", T_U32},       {"s32", T_S32},   {"u64", T_U64},
      {"b64", T_U64},   {"s64", T_S64},       {"f16", T_F16},       {"bf16", T_BF16}, {"f32", T_F32},
      {"f64", T_F64},   {"f16x2", T_F16X2},   {"bf16x2", T_BF16X2}, {"pred", T_PRED}, {"b128", T_B128},
      {"tf32", T_TF32}, {"e4m3x2", T_E4M3X2}, {"e5m2x2", T_E5M2X2}};
  auto it = m.find(t);
  return it == m.end() ? T_NONE : it->second;
}
static int tw(Ty t) {
  switch (t) {
    case T_U8:
    case T_S8:
      return 1;
    case T_U16:
    case T_S16:
    case T_F16:
    case T_BF16:
    case T_E4M3X2:
    case T_E5M2X2:
      return 2;
    case T_U32:
    case T_S32:
    case T_F32:
    case T_F16X2:
    case T_BF16X2:
    case T_TF32:
      return 4;
    case T_U64:
    case T_S64:
    case T_F64:
      return 8;
    case T_B128:
      return 16;
    default:
      return 0;
  }
}
struct Unsup {
  string why;
};
struct Addr {
  Opnd base;
  bool hasbase = false;
  s64 off = 0;
  int symspace = SP_NONE;
};
struct Dec {
  Module& M;
  Program& P;
  Function* F = nullptr;
  int scope = 0;
  u32 fbase = 0;
  int fidx = 0;
  std::map<string, int> regslots;
  std::map<std::pair<u64, int>, int> consts;
  std::map<string, u32> localaddr;
  std::map<string, u32> sharedaddr;
  std::map<string, u32> fstart;
  vector<string> queue;
  std::map<string, int> fids;
  vector<std::pair<u32, string>> callfix;
  int sinkslot = -1;
  Inst* I = nullptr;
  string op;
  vector<string> mods, ops;
  vector<Ty> tys;
  Dec(Module& m, Program& p) : M(m), P(p) {}
  bool has(const char* s) {
    for (auto& x : mods)
      if (x == s) return true;
    return false;
  }
  int newslot(int bytes) {
    int o = P.regbytes;
    P.regbytes += bytes;
    return o;
  }
  int wslot(u8 w) { return w == 0 ? newslot(64) : newslot(32 * w); }
  Opnd reg(const string& n0, bool dst) {
    string n = n0;
    Opnd o;
    if (n == "_") {
      if (sinkslot < 0) sinkslot = newslot(512);
      o.off = sinkslot;
      o.kind = OK_SINK;
      o.w = 8;
      return o;
    }
    for (int s = scope; s >= 0; s = F->scopes[s].parent) {
      Scope& S = F->scopes[s];
      u8 w;
      bool ok = false;
      auto it = S.regs.find(n);
      if (it != S.regs.end()) {
        w = it->second;
        ok = true;
      } else {
        size_t k = n.size();
        while (k && isdigit((u8)n[k - 1])) k--;
        auto jt = S.ranged.find(n.substr(0, k));
        if (jt != S.ranged.end() && k < n.size() && atoi(n.c_str() + k) < jt->second.count) {
          w = jt->second.w;
          ok = true;
        }
      }
      if (ok) {
        string key = std::to_string(fidx) + ":" + std::to_string(s) + ":" + n;
        auto kt = regslots.find(key);
        if (kt == regslots.end()) kt = regslots.emplace(key, wslot(w)).first;
        o.off = kt->second;
        o.w = w;
        o.kind = w ? OK_REG : OK_PRED;
        return o;
      }
    }
    return o;  // OK_NONE
  }
  Opnd cst(u64 v, int w) {  // replicated constant
    Opnd o;
    o.kind = OK_CONST;
    o.w = w;
    auto key = std::make_pair(v, w);
    auto it = consts.find(key);
    if (it == consts.end()) {
      while (P.cpool.size() & 63) P.cpool.push_back(0);
      int at = P.cpool.size();
      int ww = w ? w : 4;
      P.cpool.resize(at + 32 * ww);
      for (int l = 0; l < 32; l++) {
        if (w == 16) {
          memcpy(&P.cpool[at + l * 16], &v, 8);
          u64 hi = (s64)v < 0 ? ~0ull : 0;
          memcpy(&P.cpool[at + l * 16 + 8], &hi, 8);
        } else
          memcpy(&P.cpool[at + l * ww], &v, ww);
      }
      it = consts.emplace(key, at).first;
    }
    o.off = ~it->second;
    return o;
  }
  static bool isnum(const string& s) {
    return !s.empty() && (isdigit((u8)s[0]) || ((s[0] == '-' || s[0] == '+') && s.size() > 1 && isdigit((u8)s[1])));
  }
  u64 num(const string& s, Ty t) {
    bool neg = s[0] == '-';
    string q = (neg || s[0] == '+') ? s.substr(1) : s;
    if (q.size() > 2 && q[0] == '0' && (q[1] == 'f' || q[1] == 'F')) {
      u32 b = strtoul(q.c_str() + 2, 0, 16);
      if (neg) b ^= 0x80000000u;
      if (t == T_F64) {
        double d = std::bit_cast<float>(b);
        return std::bit_cast<u64>(d);
      }
      return b;
    }
    if (q.size() > 2 && q[0] == '0' && (q[1] == 'd' || q[1] == 'D')) {
      u64 b = strtoull(q.c_str() + 2, 0, 16);
      if (neg) b ^= 1ull << 63;
      if (t == T_F32) return std::bit_cast<u32>((float)std::bit_cast<double>(b));
      return b;
    }
    if (q.find('.') != string::npos || ((q.find('e') != string::npos || q.find('E') != string::npos) &&
                                        q.rfind("0x", 0) != 0 && q.rfind("0X", 0) != 0)) {
      double d = strtod(s.c_str(), 0);
      if (t == T_F64) return std::bit_cast<u64>(d);
      return std::bit_cast<u32>((float)d);
    }
    u64 v = strtoull(q.c_str(), 0, 0);
    if (neg) v = -v;
    if (t == T_F32 || t == T_F64) {
      double d = neg ? -(double)strtoull(q.c_str(), 0, 0) : (double)v;
      return t == T_F64 ? std::bit_cast<u64>(d) : (u64)std::bit_cast<u32>((float)d);
    }
    return v;
  }
  bool symbol(const string& n, u64& addr, int& space) {
    for (int s = scope; s >= 0; s = F->scopes[s].parent) {
      auto it = F->scopes[s].vars.find(n);
      if (it != F->scopes[s].vars.end()) {
        Var& v = it->second;
        string key = std::to_string(fidx) + ":" + std::to_string(s) + ":" + n;
        if (v.space == SP_LOCAL || v.space == SP_PARAM) {
          auto k = localaddr.find(key);
          if (k == localaddr.end()) {
            u32 a = std::max(16u, v.align);
            P.localsize = (P.localsize + a - 1) / a * a;
            k = localaddr.emplace(key, P.localsize).first;
            P.localsize += std::max<u64>(v.size, 8);
          }
          addr = k->second;
          space = SP_LOCAL;
          return true;
        }
        if (v.space == SP_SHARED) {
          addr = shared(key, v);
          space = SP_SHARED;
          return true;
        }
        if (v.space == SP_GLOBAL || v.space == SP_CONST) {
          auto g = M.vars.find(F->name + "::" + n);
          if (g == M.vars.end()) {
            Var x = v;
            x.name = F->name + "::" + n;
            Range* r = g_mem.add(nullptr, x.size, 0, true, x.name.c_str());
            x.addr = r->base;
            memcpy(r->host, x.init.data(), std::min<u64>(x.init.size(), x.size));
            M.range_ids.push_back(r->id);
            g = M.vars.emplace(x.name, x).first;
          }
          addr = g->second.addr;
          space = v.space;
          return true;
        }
      }
    }
    if (F->entry) {
      for (auto& p : F->params)
        if (p.name == n) {
          addr = p.off;
          space = SP_PARAM;
          return true;
        }
    } else {
      for (auto* pl : {&F->params, &F->rets})
        for (auto& p : *pl)
          if (p.name == n) {
            addr = fparam(F->name, n, p);
            space = SP_LOCAL;
            return true;
          }
    }
    auto it = M.vars.find(n);
    if (it != M.vars.end()) {
      Var& v = it->second;
      if (v.space == SP_SHARED) {
        if (v.ext || v.unsized) {
          P.uses_dyn = true;
          addr = 0;
          space = 100;
          return true;
        }
        addr = shared("g:" + n, v);
        space = SP_SHARED;
        return true;
      }
      if (v.ext) throw Unsup{"extern variable " + n};
      addr = v.addr;
      space = v.space;
      return true;
    }
    return false;
  }
  u32 fparam(const string& fn, const string& n, const Param& p) {
    string key = "F:" + fn + ":" + n;
    auto k = localaddr.find(key);
    if (k == localaddr.end()) {
      P.localsize = (P.localsize + 15) & ~15u;
      k = localaddr.emplace(key, P.localsize).first;
      P.localsize += std::max(8u, p.size);
    }
    return k->second;
  }
  u32 shared(const string& key, Var& v) {
    auto k = sharedaddr.find(key);
    if (k == sharedaddr.end()) {
      u32 a = std::max(v.align, 4u);
      P.sstatic = (P.sstatic + a - 1) / a * a;
      k = sharedaddr.emplace(key, P.sstatic).first;
      P.svars.push_back({P.sstatic, (u32)v.size});
      P.svarnames.push_back({v.name, {P.sstatic, (u32)v.size}});
      P.sstatic += v.size;
    }
    return k->second;
  }
  struct DynFix {
    int at, w;
    u64 add;
  };
  vector<DynFix> dynfix;  // constants relative to the dynamic shared base, patched after layout
  Opnd dyncst(u64 add, int w) {
    Opnd o;
    o.kind = OK_CONST;
    o.w = w;
    while (P.cpool.size() & 63) P.cpool.push_back(0);
    int at = P.cpool.size();
    P.cpool.resize(at + 32 * w);
    dynfix.push_back({at, w, add});
    o.off = ~at;
    return o;
  }
  int special(const string& n) {
    auto it = P.special.find(n);
    if (it == P.special.end()) it = P.special.emplace(n, newslot(128)).first;
    return it->second;
  }
  static bool isdynspecial(const string& n) {
    return n == "%clock" || n == "%clock64" || n == "%clock_hi" || n == "%globaltimer" || n == "%globaltimer_lo" ||
           n == "%globaltimer_hi";
  }
  Opnd src(const string& s, Ty t, int width = -1) {
    int w = width >= 0 ? width : tw(t);
    if (w == 1) w = 2;
    if (isnum(s)) {
      u64 v = num(s, t);
      if (t == T_PRED) return cst(v ? 0xffffffffu : 0, 0);
      return cst(v & (w >= 8 ? ~0ull : maskw(w)), w);
    }
    if (t == T_PRED) {
      bool neg = s[0] == '!';
      Opnd o = reg(trim(neg ? s.substr(1) : s), false);
      if (o.kind != OK_PRED) throw Unsup{"predicate operand " + s};
      o.neg = neg;
      return o;
    }
    if (s[0] == '-') throw Unsup{"negated operand"};
    if (s[0] == '%') {
      Opnd o = reg(s, false);
      if (o.kind) {
        return o;
      }
      if (s == "%warpsz") return cst(32, w);
      o.off = special(s);
      o.w = 4;
      o.kind = OK_REG;
      return o;
    }
    if (s == "WARP_SZ") return cst(32, w);
    Opnd o = reg(s, false);
    if (o.kind) return o;
    u64 a;
    int sp;
    string n = s;
    s64 add = 0;
    size_t pl = s.find('+');
    if (pl != string::npos) {
      n = trim(s.substr(0, pl));
      add = strtoll(s.c_str() + pl + 1, 0, 0);
    }
    if (symbol(n, a, sp)) {
      if (sp == 100) return dyncst(add, w);
      return cst(a + add, w);
    }
    if (M.funcs.count(n)) throw Unsup{"address of function " + n};
    throw Unsup{"unknown operand " + s};
  }
  Opnd srcw(const string& s, Ty t) {
    Opnd o = src(s, t);
    int w = tw(t);
    if (w == 1) w = 2;
    if (t != T_PRED && o.w != w) throw Unsup{fmt("operand %s has width %d, expected %d", s.c_str(), o.w * 8, w * 8)};
    return o;
  }
  Opnd dst(const string& s, Ty t) {
    Opnd o = reg(s, true);
    if (!o.kind) throw Unsup{"unknown destination " + s};
    int w = tw(t);
    if (w == 1) w = 2;
    if (o.kind == OK_REG && o.w != w)
      throw Unsup{fmt("destination %s has width %d, expected %d", s.c_str(), o.w * 8, w * 8)};
    if ((o.kind == OK_PRED) != (t == T_PRED) && o.kind != OK_SINK) throw Unsup{"destination kind " + s};
    return o;
  }
  Addr addr(const string& s) {  // [..]
    if (s.size() < 2 || s[0] != '[') throw Unsup{"address " + s};
    string q = trim(s.substr(1, s.size() - 2));
    Addr A;
    if (isnum(q)) {
      A.off = num(q, T_U64);
      return A;
    }
    size_t k = q.find('+');
    string b = trim(k == string::npos ? q : q.substr(0, k));
    if (k != string::npos)
      A.off = strtoll(trim(q.substr(k + 1)).c_str(), 0, 0);
    else {
      size_t mi = q.find('-', 1);
      if (mi != string::npos) {
        b = trim(q.substr(0, mi));
        A.off = -strtoll(q.c_str() + mi + 1, 0, 0);
      }
    }
    Opnd o = reg(b, false);
    if (o.kind == OK_REG) {
      A.base = o;
      A.hasbase = true;
      return A;
    }
    u64 a;
    int sp;
    if (symbol(b, a, sp)) {
      A.symspace = sp == 100 ? SP_SHARED : sp;
      if (sp == 100) {
        A.base = dyncst(0, 8);
        A.hasbase = true;
      } else
        A.off += a;
      return A;
    }
    throw Unsup{"address " + s};
  }
  void decode(const Stmt& st);
  void arith();
  void cvt();
  void memop();
  void setp();
  void mov();
  void atom();
  bool f_half();
  void cat(int c) { I->cat = c; }
};
// rounding / saturation wrappers
static const u32 MX[4] = {0, _MM_ROUND_TOWARD_ZERO, _MM_ROUND_DOWN, _MM_ROUND_UP};
static void ex_rm(Warp& w, const Inst& I, u32 m) {
  u32 old = _mm_getcsr();
  _mm_setcsr((old & ~_MM_ROUND_MASK) | MX[I.rm & 3]);
  asm volatile("" ::: "memory");
  I.fn2(w, I, m);
  asm volatile("" ::: "memory");
  _mm_setcsr(old);
}
static void sat_f32(Warp& w, const Inst& I, u32 m) {
  float* d = w.D<float>(I.d[0]);
  LANES(float x = d[l]; d[l] = x != x ? 0.f : x <= 0 ? 0.f : x >= 1 ? 1.f : x);
}
static void sat_f64(Warp& w, const Inst& I, u32 m) {
  double* d = w.D<double>(I.d[0]);
  LANES(double x = d[l]; d[l] = x != x ? 0. : x <= 0 ? 0. : x >= 1 ? 1. : x);
}
static void ex_post(Warp& w, const Inst& I, u32 m) {
  if (I.rm)
    ex_rm(w, I, m);
  else
    I.fn2(w, I, m);
  if (I.sat == 1)
    sat_f32(w, I, m);
  else if (I.sat == 2)
    sat_f64(w, I, m);
  else if (I.sat == 3) {
    u16* d = w.D<u16>(I.d[0]);
    LANES(float x = h2f(d[l]); d[l] = f2h(x != x ? 0.f : x <= 0 ? 0.f : x >= 1 ? 1.f : x));
  } else if (I.sat == 4) {
    u32* d = w.D<u32>(I.d[0]);
    LANES(float x = h2f(d[l]); float y = h2f(d[l] >> 16); d[l] = pk(f2h(x != x   ? 0.f
                                                                        : x <= 0 ? 0.f
                                                                        : x >= 1 ? 1.f
                                                                                 : x),
                                                                    f2h(y != y   ? 0.f
                                                                        : y <= 0 ? 0.f
                                                                        : y >= 1 ? 1.f
                                                                                 : y)));
  } else if (I.sat == 5) {
    u16* d = w.D<u16>(I.d[0]);
    LANES(u16 x = d[l]; d[l] = ((x & 0x7fff) > (I.sub2 ? 0x7f80 : 0x7c00)) ? 0x7fff : (x & 0x8000) ? 0 : x);
  } else if (I.sat == 6) {
    u32* d = w.D<u32>(I.d[0]);
    u32 inf = I.sub2 ? 0x7f80 : 0x7c00;
    auto f = [&](u16 x) -> u16 { return ((x & 0x7fffu) > inf) ? 0x7fff : (x & 0x8000) ? 0 : x; };
    LANES(d[l] = pk(f(d[l]), f(d[l] >> 16)));
  }
}
template <class T>
static T isat(s128 v) {
  s128 lo = std::numeric_limits<T>::min(), hi = std::numeric_limits<T>::max();
  return (T)(v < lo ? lo : v > hi ? hi : v);
}

// ================================================================ comparison
enum { CEQ, CNE, CLT, CLE, CGT, CGE, CEQU, CNEU, CLTU, CLEU, CGTU, CGEU, CNUM, CNAN };
static int cmpop(const string& s) {
  static const std::map<string, int> m = {{"eq", CEQ},   {"ne", CNE},   {"lt", CLT},   {"le", CLE},   {"gt", CGT},
                                          {"ge", CGE},   {"lo", CLT},   {"ls", CLE},   {"hi", CGT},   {"hs", CGE},
                                          {"equ", CEQU}, {"neu", CNEU}, {"ltu", CLTU}, {"leu", CLEU}, {"gtu", CGTU},
                                          {"geu", CGEU}, {"num", CNUM}, {"nan", CNAN}};
  auto i = m.find(s);
  return i == m.end() ? -1 : i->second;
}
template <class T, int OP>
static inline bool cmp1(T a, T b) {
  if constexpr (OP == CEQ) return a == b;
  if constexpr (OP == CNE) return std::is_floating_point_v<T> ? (a < b || a > b) : a != b;
  if constexpr (OP == CLT) return a < b;
  if constexpr (OP == CLE) return a <= b;
  if constexpr (OP == CGT) return a > b;
  if constexpr (OP == CGE) return a >= b;
  if constexpr (OP == CEQU) return !(a < b || a > b);
  if constexpr (OP == CNEU) return a != b;
  if constexpr (OP == CLTU) return !(a >= b);
  if constexpr (OP == CLEU) return !(a > b);
  if constexpr (OP == CGTU) return !(a <= b);
  if constexpr (OP == CGEU) return !(a < b);
  if constexpr (OP == CNUM) return a == a && b == b;
  if constexpr (OP == CNAN) return a != a || b != b;
  return false;
}
typedef u32 (*CmpFn)(const void*, const void*, u32);
template <class T, int OP, int CV>
static u32 cmpv(const void* pa, const void* pb, u32 m) {
  u32 r = 0;
  for (int l = 0; l < 32; l++) {
    T a, b;
    if constexpr (CV == 0) {
      a = ((const T*)pa)[l];
      b = ((const T*)pb)[l];
    } else if constexpr (CV == 1) {
      a = h2f(((const u16*)pa)[l]);
      b = h2f(((const u16*)pb)[l]);
    } else if constexpr (CV == 2) {
      a = b2f(((const u16*)pa)[l]);
      b = b2f(((const u16*)pb)[l]);
    } else if constexpr (CV == 3) {
      a = fz(((const float*)pa)[l]);
      b = fz(((const float*)pb)[l]);
    } else if constexpr (CV == 4) {
      a = h2f(((const u32*)pa)[l]);
      b = h2f(((const u32*)pb)[l]);
    } else if constexpr (CV == 5) {
      a = h2f(((const u32*)pa)[l] >> 16);
      b = h2f(((const u32*)pb)[l] >> 16);
    } else if constexpr (CV == 6) {
      a = b2f(((const u32*)pa)[l]);
      b = b2f(((const u32*)pb)[l]);
    } else {
      a = b2f(((const u32*)pa)[l] >> 16);
      b = b2f(((const u32*)pb)[l] >> 16);
    }
    r |= (u32)cmp1<T, OP>(a, b) << l;
  }
  return r & m;
}
template <class T, int CV>
static CmpFn selcmp(int op) {
  switch (op) {
    case CEQ:
      return cmpv<T, CEQ, CV>;
    case CNE:
      return cmpv<T, CNE, CV>;
    case CLT:
      return cmpv<T, CLT, CV>;
    case CLE:
      return cmpv<T, CLE, CV>;
    case CGT:
      return cmpv<T, CGT, CV>;
    case CGE:
      return cmpv<T, CGE, CV>;
  }
  if constexpr (std::is_floating_point_v<T>) switch (op) {
      case CEQU:
        return cmpv<T, CEQU, CV>;
      case CNEU:
        return cmpv<T, CNEU, CV>;
      case CLTU:
        return cmpv<T, CLTU, CV>;
      case CLEU:
        return cmpv<T, CLEU, CV>;
      case CGTU:
        return cmpv<T, CGTU, CV>;
      case CGEU:
        return cmpv<T, CGEU, CV>;
      case CNUM:
        return cmpv<T, CNUM, CV>;
      case CNAN:
        return cmpv<T, CNAN, CV>;
    }
  throw Unsup{"comparison"};
}
static CmpFn getcmp(Ty t, int op, bool ftz, int half = 0) {
  switch (t) {
    case T_U16:
    case T_U8:
      return selcmp<u16, 0>(op);
    case T_S16:
    case T_S8:
      return selcmp<s16, 0>(op);
    case T_U32:
      return selcmp<u32, 0>(op);
    case T_S32:
      return selcmp<s32, 0>(op);
    case T_U64:
      return selcmp<u64, 0>(op);
    case T_S64:
      return selcmp<s64, 0>(op);
    case T_F32:
      return ftz ? selcmp<float, 3>(op) : selcmp<float, 0>(op);
    case T_F64:
      return selcmp<double, 0>(op);
    case T_F16:
      return selcmp<float, 1>(op);
    case T_BF16:
      return selcmp<float, 2>(op);
    case T_F16X2:
      return half ? selcmp<float, 5>(op) : selcmp<float, 4>(op);
    case T_BF16X2:
      return half ? selcmp<float, 7>(op) : selcmp<float, 6>(op);
    default:
      throw Unsup{"comparison type"};
  }
}
// setp: imm = CmpFn ; sub = bool op (0 none,1 and,2 or,3 xor); sub2 = x2 mode
static void ex_setp(Warp& w, const Inst& I, u32 m) {
  u32 r = ((CmpFn)I.imm)(w.S<u8>(I.s[0]), w.S<u8>(I.s[1]), FULL), q = ~r;
  if (I.sub) {
    u32 c = w.P(I.s[2]);
    if (I.sub == 1) {
      r &= c;
      q &= c;
    } else if (I.sub == 2) {
      r |= c;
      q |= c;
    } else {
      r ^= c;
      q ^= c;
    }
  }
  u32* d = w.D<u32>(I.d[0]);
  *d = (*d & ~m) | (r & m);
  if (I.nd > 1) {
    u32* e = w.D<u32>(I.d[1]);
    *e = (*e & ~m) | (q & m);
  }
}
static std::map<u64, std::pair<CmpFn, CmpFn>> g_x2;
static void ex_setpx2(Warp& w, const Inst& I, u32 m) {
  auto& p = *(std::pair<CmpFn, CmpFn>*)I.imm;
  u32 r = p.first(w.S<u8>(I.s[0]), w.S<u8>(I.s[1]), FULL), q = p.second(w.S<u8>(I.s[0]), w.S<u8>(I.s[1]), FULL);
  if (I.sub) {
    u32 c = w.P(I.s[2]);
    if (I.sub == 1) {
      r &= c;
      q &= c;
    } else if (I.sub == 2) {
      r |= c;
      q |= c;
    } else {
      r ^= c;
      q ^= c;
    }
  }
  u32* d = w.D<u32>(I.d[0]);
  *d = (*d & ~m) | (r & m);
  if (I.nd > 1) {
    u32* e = w.D<u32>(I.d[1]);
    *e = (*e & ~m) | (q & m);
  }
}
static void ex_set(Warp& w, const Inst& I, u32 m) {  // set -> d type ty
  u32 r, q = 0;
  if (I.sub2) {
    auto& p = *(std::pair<CmpFn, CmpFn>*)I.imm;
    r = p.first(w.S<u8>(I.s[0]), w.S<u8>(I.s[1]), FULL);
    q = p.second(w.S<u8>(I.s[0]), w.S<u8>(I.s[1]), FULL);
  } else
    r = ((CmpFn)I.imm)(w.S<u8>(I.s[0]), w.S<u8>(I.s[1]), FULL);
  if (I.sub) {
    u32 c = w.P(I.s[2]);
    if (I.sub == 1) {
      r &= c;
      q &= c;
    } else if (I.sub == 2) {
      r |= c;
      q |= c;
    } else {
      r ^= c;
      q ^= c;
    }
  }
  switch (I.ty) {
    case T_U32:
    case T_S32: {
      u32* d = w.D<u32>(I.d[0]);
      if (I.sub2)
        LANES(d[l] = (r >> l & 1 ? 0xffffu : 0) | (q >> l & 1 ? 0xffff0000u : 0));
      else
        LANES(d[l] = r >> l & 1 ? FULL : 0);
      break;
    }
    case T_F32: {
      float* d = w.D<float>(I.d[0]);
      LANES(d[l] = r >> l & 1 ? 1.f : 0.f);
      break;
    }
    case T_U16:
    case T_S16: {
      u16* d = w.D<u16>(I.d[0]);
      LANES(d[l] = r >> l & 1 ? 0xffff : 0);
      break;
    }
    case T_F16: {
      u16* d = w.D<u16>(I.d[0]);
      LANES(d[l] = r >> l & 1 ? 0x3c00 : 0);
      break;
    }
    case T_BF16: {
      u16* d = w.D<u16>(I.d[0]);
      LANES(d[l] = r >> l & 1 ? 0x3f80 : 0);
      break;
    }
    case T_F16X2: {
      u32* d = w.D<u32>(I.d[0]);
      LANES(d[l] = (r >> l & 1 ? 0x3c00u : 0) | (q >> l & 1 ? 0x3c000000u : 0));
      break;
    }
    case T_BF16X2: {
      u32* d = w.D<u32>(I.d[0]);
      LANES(d[l] = (r >> l & 1 ? 0x3f80u : 0) | (q >> l & 1 ? 0x3f800000u : 0));
      break;
    }
  }
}
static int boolop(const string& s) { return s == "and" ? 1 : s == "or" ? 2 : s == "xor" ? 3 : 0; }
void Dec::setp() {
  bool isset = op == "set";
  int co = cmpop(mods[0]);
  if (co < 0) throw Unsup{"comparison ." + mods[0]};
  int bo = 0;
  for (auto& x : mods)
    if (boolop(x)) bo = boolop(x);
  Ty t = tys.back();
  bool x2 = t == T_F16X2 || t == T_BF16X2;
  bool ftz = has("ftz");
  cat(C_SETP);
  string d0 = ops[0], d1;
  size_t bar = d0.find('|');
  if (bar != string::npos) {
    d1 = trim(d0.substr(bar + 1));
    d0 = trim(d0.substr(0, bar));
  }
  I->s[0] = srcw(ops[1], t);
  I->s[1] = srcw(ops[2], t);
  if (bo) {
    I->s[2] = src(ops[3], T_PRED);
    I->sub = bo;
  }
  if (x2) {
    u64 key = (u64)t << 32 | co;
    auto& p = g_x2[key];
    p = {getcmp(t, co, false, 0), getcmp(t, co, false, 1)};
    I->imm = (s64)&p;
    I->sub2 = 1;
  } else
    I->imm = (s64)getcmp(t, co, ftz);
  if (isset) {
    I->ty = tys[0];
    I->d[0] = dst(d0, tys[0]);
    I->nd = 1;
    I->fn = ex_set;
  } else {
    I->d[0] = dst(d0, T_PRED);
    I->nd = 1;
    if (!d1.empty()) {
      I->d[1] = dst(d1, T_PRED);
      I->nd = 2;
    }
    I->fn = x2 ? ex_setpx2 : ex_setp;
  }
}

// ================================================================ cvt
static void ex_cvt(Warp& w, const Inst& I, u32 m) {  // general path
  Ty st = (Ty)I.ty2, dt = (Ty)I.ty;
  int mode = I.rm;
  bool irnd = I.sub & 1, ftz = I.sub & 2;
  bool sat = I.sub & 4, relu = I.sub & 8;
  int sw = I.s[0].w, dw = I.d[0].w;
  bool sfl = st == T_F16 || st == T_BF16 || st == T_F32 || st == T_F64,
       dfl = dt == T_F16 || dt == T_BF16 || dt == T_F32 || dt == T_F64 || dt == T_TF32;
  const u8* sp = w.S<u8>(I.s[0]);
  u8* dp = w.D<u8>(I.d[0]);
  for (u32 t = m; t; t &= t - 1) {
    int l = __builtin_ctz(t);
    u64 raw = 0;
    memcpy(&raw, sp + l * sw, std::min(sw, 8));
    u64 out = 0;
    double x = 0;
    s128 v = 0;
    if (sfl) {
      if (st == T_F16)
        x = h2f(raw);
      else if (st == T_BF16)
        x = b2f(raw);
      else if (st == T_F32) {
        float f = std::bit_cast<float>((u32)raw);
        if (ftz) f = fz(f);
        x = f;
      } else
        x = std::bit_cast<double>(raw);
    } else
      switch (st) {
        case T_U8:
          v = (u8)raw;
          break;
        case T_S8:
          v = (s8)raw;
          break;
        case T_U16:
          v = (u16)raw;
          break;
        case T_S16:
          v = (s16)raw;
          break;
        case T_U32:
          v = (u32)raw;
          break;
        case T_S32:
          v = (s32)raw;
          break;
        case T_U64:
          v = (u64)raw;
          break;
        default:
          v = (s64)raw;
      }
    if (dfl) {
      if (sfl) {
        if (irnd) switch (mode) {
            case 1:
              x = std::trunc(x);
              break;
            case 2:
              x = std::floor(x);
              break;
            case 3:
              x = std::ceil(x);
              break;
            default:
              x = std::nearbyint(x);
          }
      } else {  // int -> float, rounding by mode
        if (dt == T_F64) {
          double r = (double)v;
          if (mode && (s128)r != v) {
            if (mode == 1 ? (r > 0 ? (s128)r > v : (s128)r < v) : mode == 2 ? (s128)r > v : false)
              r = std::nextafter(r, mode == 1 ? 0.0 : -INFINITY);
            else if (mode == 3 && (s128)r < v)
              r = std::nextafter(r, INFINITY);
          }
          x = r;
        } else if (dt == T_F32) {
          float r = st == T_U64 ? (float)(u64)v : (float)(s64)v;
          if (mode && (s128)r != v) {
            if (mode == 1 ? (r > 0 ? (s128)r > v : (s128)r < v) : mode == 2 ? (s128)r > v : false)
              r = std::nextafterf(r, mode == 1 ? 0.0f : -INFINITY);
            else if (mode == 3 && (s128)r < v)
              r = std::nextafterf(r, INFINITY);
          }
          x = r;
        } else
          x = (double)v;
      }
      if (sat) x = x != x ? 0 : x <= 0 ? 0 : x >= 1 ? 1 : x;
      if (relu && !(x != x)) x = x > 0 ? x : 0;
      switch (dt) {
        case T_F16:
          out = d2h(x, irnd ? 0 : mode);
          break;
        case T_BF16:
          out = d2b(x, irnd ? 0 : mode);
          break;
        case T_TF32:
          out = x != x ? 0x7fffffffu : std::bit_cast<u32>((float)rnd_fmt(x, 10, -126, 3.4e38, mode));
          break;
        case T_F32: {
          float f = (float)x;
          if (x != x)
            f = cn(f);
          else if (mode && !irnd && (double)f != x) {
            if (mode == 1) {
              if (std::fabs((double)f) > std::fabs(x)) f = std::nextafterf(f, 0.f);
            } else if (mode == 2) {
              if (f > x) f = std::nextafterf(f, -INFINITY);
            } else if (mode == 3) {
              if (f < x) f = std::nextafterf(f, INFINITY);
            }
          }
          if (ftz) f = fz(f);
          out = std::bit_cast<u32>(f);
          break;
        }
        default:
          out = std::bit_cast<u64>(x);
      }
    } else {
      if (sfl) {
        bool nan = x != x;
        switch (mode) {
          case 1:
            x = std::trunc(x);
            break;
          case 2:
            x = std::floor(x);
            break;
          case 3:
            x = std::ceil(x);
            break;
          default:
            x = std::nearbyint(x);
        }
        if (nan)
          v = (st != T_F64 && dt != T_S64 && dt != T_U64) ? 0
              : dt == T_U64                               ? (s128)1 << 63
              : dt == T_S64                               ? -((s128)1 << 63)
              : dt == T_U32                               ? (s128)1 << 31
              : dt == T_S32                               ? -((s128)1 << 31)
                                                          : 0;
        else if (x > 3e19)
          v = (s128)1 << 100;
        else if (x < -3e19)
          v = -((s128)1 << 100);
        else
          v = (s128)x;
        sat = true;
      }
      if (sat) switch (dt) {
          case T_U8:
            v = isat<u8>(v);
            break;
          case T_S8:
            v = isat<s8>(v);
            break;
          case T_U16:
            v = isat<u16>(v);
            break;
          case T_S16:
            v = isat<s16>(v);
            break;
          case T_U32:
            v = isat<u32>(v);
            break;
          case T_S32:
            v = isat<s32>(v);
            break;
          case T_U64:
            v = isat<u64>(v);
            break;
          default:
            v = isat<s64>(v);
        }
      switch (dt) {
        case T_U8:
          out = (u8)v;
          break;
        case T_S8:
          out = (u64)(s64)(s8)v;
          break;
        case T_U16:
          out = (u16)v;
          break;
        case T_S16:
          out = (u64)(s64)(s16)v;
          break;
        case T_U32:
          out = (u32)v;
          break;
        case T_S32:
          out = (u64)(s64)(s32)v;
          break;
        default:
          out = (u64)v;
      }
    }
    memcpy(dp + l * dw, &out, std::min(dw, 8));
  }
}
static double e4m3(u8 b) {
  int s = b >> 7, e = b >> 3 & 15, f = b & 7;
  if (e == 15 && f == 7) return NAN;
  double v = e ? std::ldexp(1 + f / 8.0, e - 7) : std::ldexp(f / 8.0, -6);
  return s ? -v : v;
}
static double e5m2(u8 b) { return h2f((u16)b << 8); }
static u8 to_e4m3(double x) {
  if (x != x) return 0x7f;
  u8 s = std::signbit(x) ? 0x80 : 0;
  x = std::fabs(x);
  if (x > 448) x = 448;
  double r = rnd_fmt(x, 3, -6, 448, 0);
  if (std::isinf(r)) r = 448;
  if (r == 0) return s;
  int e;
  std::frexp(r, &e);
  e--;
  if (e < -6) return s | (u8)std::ldexp(r, 9);
  return s | (e + 7) << 3 | (u8)(std::ldexp(r, 3 - e) - 8);
}
static u8 to_e5m2(double x) {
  if (x != x) return 0x7f;
  u8 s = std::signbit(x) ? 0x80 : 0;
  x = std::fabs(x);
  if (x > 57344) x = 57344;
  double r = rnd_fmt(x, 2, -14, 57344, 0);
  return s | d2h(r) >> 8;
}
static void ex_cvtx2(Warp& w, const Inst& I, u32 m) {  // d.x2 = {hi=a, lo=b}
  Ty dt = (Ty)I.ty;
  int mode = I.rm;
  bool relu = I.sub & 8;
  const float *a = w.S<float>(I.s[0]), *b = w.S<float>(I.s[1]);
  auto cv = [&](float x) -> u16 {
    if (relu && x == x) x = x > 0 ? x : 0;
    return dt == T_F16X2 ? (mode ? d2h(x, mode) : f2h(x)) : (mode ? d2b(x, mode) : f2b(x));
  };
  if (dt == T_F16X2 || dt == T_BF16X2) {
    u32* d = w.D<u32>(I.d[0]);
    LANES(d[l] = pk(cv(b[l]), cv(a[l])));
  } else {
    u16* d = w.D<u16>(I.d[0]);
    bool e4 = dt == T_E4M3X2;
    if (I.ty2 == T_F16X2) {
      const u32* q = w.S<u32>(I.s[0]);
      LANES(float x = h2f(q[l]); float y = h2f(q[l] >> 16);
            d[l] = e4 ? to_e4m3(x) | to_e4m3(y) << 8 : to_e5m2(x) | to_e5m2(y) << 8);
    } else
      LANES(float x = a[l]; float y = b[l]; if (relu) {
        x = fmx(x, 0);
        y = fmx(y, 0);
      } d[l] = e4 ? to_e4m3(y) | to_e4m3(x) << 8 : to_e5m2(y) | to_e5m2(x) << 8);
  }
}
static void ex_cvt8to16(Warp& w, const Inst& I, u32 m) {
  const u16* a = w.S<u16>(I.s[0]);
  u32* d = w.D<u32>(I.d[0]);
  bool e4 = I.ty2 == T_E4M3X2;
  LANES(u16 x = a[l];
        d[l] = e4 ? pk(d2h(e4m3(x & 255)), d2h(e4m3(x >> 8))) : pk(d2h(e5m2(x & 255)), d2h(e5m2(x >> 8))));
}
void Dec::cvt() {
  cat(C_CVT);
  if (mods[0] == "pack") throw Unsup{"cvt.pack"};
  if (tys.size() < 2) throw Unsup{"cvt types"};
  Ty dt = tys[0], st = tys[1];
  int mode = 0;
  bool irnd = false, expl = false;
  for (auto& x : mods) {
    if (x == "rn")
      mode = 0, expl = true;
    else if (x == "rz")
      mode = 1;
    else if (x == "rm")
      mode = 2;
    else if (x == "rp")
      mode = 3;
    else if (x == "rna")
      mode = 4;
    else if (x == "rni")
      mode = 0, irnd = true;
    else if (x == "rzi")
      mode = 1, irnd = true;
    else if (x == "rmi")
      mode = 2, irnd = true;
    else if (x == "rpi")
      mode = 3, irnd = true;
    else if (x == "rs")
      throw Unsup{"stochastic rounding"};
  }
  (void)expl;
  I->rm = mode;
  I->sub = (irnd ? 1 : 0) | (has("ftz") ? 2 : 0) | (has("sat") ? 4 : 0) | (has("relu") ? 8 : 0);
  I->ty = dt;
  I->ty2 = st;
  I->nd = 1;
  if (dt == T_F16X2 && (st == T_E4M3X2 || st == T_E5M2X2)) {
    I->d[0] = dst(ops[0], T_U32);
    I->s[0] = srcw(ops[1], T_U16);
    I->fn = ex_cvt8to16;
    return;
  }
  if (dt == T_F16X2 || dt == T_BF16X2 || dt == T_E4M3X2 || dt == T_E5M2X2) {
    I->d[0] = dst(ops[0], dt);
    if (ops.size() > 2) {
      I->s[0] = srcw(ops[1], T_F32);
      I->s[1] = srcw(ops[2], T_F32);
    } else
      I->s[0] = srcw(ops[1], T_U32);
    I->fn = ex_cvtx2;
    return;
  }
  I->d[0] = reg(ops[0], true);
  if (I->d[0].kind == OK_SINK)
    I->d[0].w = tw(dt) < 2 ? 2 : tw(dt);
  else if (I->d[0].kind != OK_REG)
    throw Unsup{"cvt destination"};
  int dw = I->d[0].w;
  Opnd s = src(ops[1], st);
  I->s[0] = s;
  I->fn = ex_cvt;
  bool plain = !has("sat") && !has("relu"), ftz = has("ftz");
  int nw = tw(dt) < 2 ? 2 : tw(dt), sw = tw(st) < 2 ? 2 : tw(st);
  if (dw != nw || s.w != sw || !plain || tw(dt) == 1 || tw(st) == 1) {
    if (s.w < tw(st) && !(s.w == 2 && tw(st) == 1)) throw Unsup{"cvt source width"};
    return;
  }
#define FAST(D, S, DC, SC, ...)                            \
  if (dt == D && st == S) {                                \
    I->fn = mk1<DC, SC>([](SC a) { return __VA_ARGS__; }); \
    return;                                                \
  }
  FAST(T_U64, T_U32, u64, u32, (u64)a)
  FAST(T_S64, T_U32, u64, u32, (u64)a)
  FAST(T_S64, T_S32, s64, s32, (s64)a)
  FAST(T_U64, T_S32, s64, s32, (s64)a)
  FAST(T_U32, T_U64, u32, u64, (u32)a)
  FAST(T_S32, T_S64, u32, u64, (u32)a)
  FAST(T_U32, T_S64, u32, u64, (u32)a)
  FAST(T_S32, T_U64, u32, u64, (u32)a)
  FAST(T_U16, T_U32, u16, u32, (u16)a)
  FAST(T_U16, T_S32, u16, u32, (u16)a)
  FAST(T_S16, T_S32, u16, u32, (u16)a)
  FAST(T_U32, T_U16, u32, u16, (u32)a)
  FAST(T_S32, T_S16, s32, s16, (s32)a)
  FAST(T_S32, T_U16, u32, u16, (u32)a)
  FAST(T_U64, T_U16, u64, u16, (u64)a)
  FAST(T_S64, T_S16, s64, s16, (s64)a)
  FAST(T_U16, T_U64, u16, u64, (u16)a)
  if (!irnd && mode == 0) {
    FAST(T_F32, T_S32, float, s32, (float)a)
    FAST(T_F32, T_U32, float, u32, (float)a)
    FAST(T_F64, T_S32, double, s32, (double)a)
    FAST(T_F64, T_U32, double, u32, (double)a)
    FAST(T_F32, T_U16, float, u16, (float)a)
    FAST(T_F32, T_S16, float, s16, (float)a)
    FAST(T_F32, T_F16, float, u16, cn(h2f(a)))
    FAST(T_F32, T_BF16, float, u16, b2f(a))
    if (!ftz) {
      FAST(T_F16, T_F32, u16, float, f2h(a))
      FAST(T_F64, T_F32, double, float, (double)a)
      FAST(T_F32, T_F64, float, double, cn((float)a))
    }
    FAST(T_BF16, T_F32, u16, float, f2b(a))
  }
  if (st == T_F32 && dt == T_S32 && mode == 1) {
    I->fn = mk1<s32, float>([](float a) -> s32 {
      return a != a ? 0 : a >= 2147483648.f ? 2147483647 : a < -2147483648.f ? (s32)0x80000000 : (s32)a;
    });
    return;
  }
  if (st == T_F32 && dt == T_U32 && mode == 1) {
    I->fn = mk1<u32, float>([](float a) -> u32 { return !(a > 0) ? 0u : a >= 4294967296.f ? ~0u : (u32)a; });
    return;
  }
  if (st == T_F32 && dt == T_S32 && mode == 0) {
    I->fn = mk1<s32, float>([](float a) -> s32 {
      a = __builtin_nearbyintf(a);
      return a != a ? 0 : a >= 2147483648.f ? 2147483647 : a < -2147483648.f ? (s32)0x80000000 : (s32)a;
    });
    return;
  }
#undef FAST
}
#include "decode2.inc"
