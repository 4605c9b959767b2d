"""The leaves that are pruned by default, for the names that people and libraries give to leaves."""

import jax
import jax.numpy as jnp
import pytest

import jaxsparse
from jaxsparse.names import is_weight, says

# Each line: the decision of the default for a leaf, its path, its shape. The names are those of the
# libraries; a few leaves stand for each kind of network.
NETWORKS = {
    # --- Flax linen
    "linen ResNet (flax examples/imagenet)": """
        pruned  conv_init/kernel                                        7x7x3x64
        dense   bn_init/scale                                           64
        pruned  ResNetBlock_0/Conv_0/kernel                             3x3x64x64
        dense   ResNetBlock_0/BatchNorm_0/scale                         64
        pruned  ResNetBlock_2/conv_proj/kernel                          1x1x64x128
        dense   ResNetBlock_2/norm_proj/bias                            128
        pruned  Dense_0/kernel                                          512x1000
        dense   Dense_0/bias                                            1000
    """,
    "linen language model (flax examples/lm1b)": """
        dense   decoder/Embed_0/embedding                               30000x512
        dense   decoder/posembed_output/pos_embedding                   1x2048x512
        dense   decoder/encoderdecoderblock_0/LayerNorm_0/scale         512
        pruned  decoder/encoderdecoderblock_0/SelfAttention_0/query/kernel   512x8x64
        pruned  decoder/encoderdecoderblock_0/SelfAttention_0/out/kernel     8x64x512
        dense   decoder/encoderdecoderblock_0/SelfAttention_0/query/bias     8x64
        pruned  decoder/encoderdecoderblock_0/MlpBlock_0/Dense_0/kernel 512x2048
        dense   decoder/encoderdecoder_norm/scale                       512
        pruned  decoder/logitdense/kernel                               512x30000
    """,
    "linen T5X by nn.scan": """
        pruned  layers/attention/query/kernel                           12x512x8x64
        dense   layers/attention/query_ln/scale                         12x64
        dense   layers/pre_attention_layer_norm/scale                   12x512
        pruned  layers/mlp/wi/kernel                                    12x512x2048
        dense   token_embedder/embedding                                32000x512
        dense   relpos_bias/rel_embedding                               8x32
        pruned  logits_dense/kernel                                     512x32000
    """,
    "linen ViT (vision_transformer, big_vision)": """
        pruned  embedding/kernel                                        16x16x3x768
        dense   cls                                                     1x1x768
        dense   Transformer/posembed_input/pos_embedding                1x197x768
        pruned  Transformer/encoderblock_0/MultiHeadDotProductAttention_1/key/kernel  768x12x64
        dense   Transformer/encoderblock_0/LayerNorm_0/scale            768
        dense   Transformer/encoder_norm/scale                          768
        pruned  pre_logits/kernel                                       768x768
        pruned  head/kernel                                             768x1000
    """,
    "linen mixer": """
        pruned  stem/kernel                                             16x16x3x512
        pruned  MixerBlock_0/token_mixing/Dense_0/kernel                196x256
        pruned  MixerBlock_0/channel_mixing/Dense_1/kernel              2048x512
        dense   pre_head_layer_norm/scale                               512
    """,
    "linen recurrent (LSTM, GRU, ConvLSTM, SimpleCell)": """
        dense   embedder/embedding                                      999x300
        pruned  OptimizedLSTMCell_0/ii/kernel                           300x256
        pruned  OptimizedLSTMCell_0/hf/kernel                           256x256
        dense   OptimizedLSTMCell_0/hf/bias                             256
        pruned  GRUCell_0/in/kernel                                     300x256
        pruned  GRUCell_0/hn/kernel                                     256x256
        pruned  ConvLSTMCell_0/ih/kernel                                3x3x16x64
        pruned  ConvLSTMCell_0/hh/kernel                                3x3x16x64
        pruned  SimpleCell_0/i/kernel                                   300x256
        pruned  SimpleCell_0/h/kernel                                   256x256
    """,
    "linen weight norm, Einsum": """
        pruned  Dense_0/kernel                                          64x64
        dense   WeightNorm_0/Dense_0/kernel/scale                       64
        pruned  Einsum_0/kernel                                         4x64x64
    """,
    # --- Flax NNX
    "NNX transformer": """
        dense   token_embed/embedding                                   1000x64
        pruned  blocks/0/attn/query/kernel                              64x4x16
        pruned  blocks/0/attn/out/kernel                                4x16x64
        dense   blocks/0/norm1/scale                                    64
        pruned  blocks/0/mlp/layers/0/kernel                            64x256
        pruned  head/kernel                                             64x1000
    """,
    "NNX recurrent": """
        pruned  rnn/cell/dense_i/kernel                                 64x256
        pruned  rnn/cell/dense_h/kernel                                 64x256
        pruned  cell/ii/kernel                                          64x64
        pruned  cell/if_/kernel                                         64x64
        dense   lora/lora_a                                             64x4
    """,
    "Gemma (flax examples/gemma)": """
        dense   embedder/input_embedding                                256128x2048
        dense   layers/0/pre_attention_norm/scale                       2048
        pruned  layers/0/attn/q_einsum/w                                8x2048x256
        pruned  layers/0/attn/kv_einsum/w                               2x1x2048x256
        pruned  layers/0/attn/attn_vec_einsum/w                         8x256x2048
        dense   layers/0/attn/_query_norm/scale                         256
        pruned  layers/0/mlp/gate_proj/kernel                           2048x16384
        dense   final_norm/scale                                        2048
    """,
    # --- Hugging Face, the Flax models
    "HF BERT": """
        dense   bert/embeddings/word_embeddings/embedding               30522x768
        dense   bert/embeddings/position_embeddings/embedding           512x768
        dense   bert/embeddings/token_type_embeddings/embedding         2x768
        dense   bert/embeddings/LayerNorm/scale                         768
        pruned  bert/encoder/layer/0/attention/self/query/kernel        768x768
        pruned  bert/encoder/layer/0/attention/output/dense/kernel      768x768
        pruned  bert/encoder/layer/0/intermediate/dense/kernel          768x3072
        pruned  bert/pooler/dense/kernel                                768x768
        pruned  cls/predictions/transform/dense/kernel                  768x768
        pruned  classifier/kernel                                       768x2
    """,
    "HF GPT-2": """
        dense   transformer/wte/embedding                               50257x768
        dense   transformer/wpe/embedding                               1024x768
        dense   transformer/h/0/ln_1/scale                              768
        pruned  transformer/h/0/attn/c_attn/kernel                      2304x768
        pruned  transformer/h/0/mlp/c_fc/kernel                         3072x768
        dense   transformer/ln_f/scale                                  768
        pruned  lm_head/kernel                                          768x50257
    """,
    "HF T5": """
        dense   shared/embedding                                        32128x512
        pruned  encoder/block/0/layer/0/SelfAttention/q/kernel          512x512
        dense   encoder/block/0/layer/0/SelfAttention/relative_attention_bias/embedding  32x8
        dense   encoder/block/0/layer/0/layer_norm/weight               512
        pruned  encoder/block/0/layer/1/DenseReluDense/wi/kernel        512x2048
        dense   encoder/final_layer_norm/weight                         512
    """,
    "HF Llama": """
        dense   model/embed_tokens/embedding                            32000x4096
        pruned  model/layers/0/self_attn/q_proj/kernel                  4096x4096
        pruned  model/layers/0/mlp/down_proj/kernel                     11008x4096
        dense   model/layers/0/input_layernorm/weight                   4096
        dense   model/norm/weight                                       4096
        pruned  lm_head/kernel                                          4096x32000
    """,
    "HF ViT, CLIP, BEiT": """
        dense   vit/embeddings/cls_token                                1x1x768
        dense   vit/embeddings/position_embeddings                      1x197x768
        pruned  vit/embeddings/patch_embeddings/projection/kernel       16x16x3x768
        dense   vit/encoder/layer/0/layernorm_before/scale              768
        dense   vision_model/embeddings/class_embedding                 768
        pruned  vision_model/embeddings/patch_embedding/kernel          32x32x3x768
        dense   vision_model/embeddings/position_embedding/embedding    50x768
        dense   vision_model/pre_layrnorm/scale                         768
        dense   text_model/embeddings/token_embedding/embedding         49408x512
        pruned  visual_projection/kernel                                768x512
        dense   beit/encoder/relative_position_bias/relative_position_bias_table  732x12
    """,
    "HF ALBERT, ELECTRA, BART, OPT, Wav2Vec2": """
        pruned  albert/encoder/embedding_hidden_mapping_in/kernel       128x768
        pruned  electra/embeddings_project/kernel                       128x256
        dense   model/encoder/layernorm_embedding/scale                 768
        dense   model/decoder/embed_positions/embedding                 2050x768
        pruned  model/decoder/project_in/kernel                         512x1024
        pruned  encoder/pos_conv_embed/conv/weight_v                    768x48x128
        dense   encoder/pos_conv_embed/conv/weight_g                    1x1x128
        pruned  feature_extractor/conv_layers/0/conv/kernel             10x1x512
    """,
    "HF ResNet, diffusers U-Net": """
        pruned  embedder/embedder/convolution/kernel                    7x7x3x64
        dense   embedder/embedder/normalization/scale                   64
        pruned  time_embedding/linear_1/kernel                          320x1280
        pruned  down_blocks_0/resnets_0/time_emb_proj/kernel            1280x320
        pruned  down_blocks_0/attentions_0/transformer_blocks_0/attn1/to_q/kernel  320x320
        dense   down_blocks_0/attentions_0/transformer_blocks_0/norm1/scale        320
        pruned  conv_in/kernel                                          3x3x4x320
    """,
    # --- Haiku and Keras
    "Haiku transformer, ResNet, recurrent": """
        dense   embed/embeddings                                        999x64
        dense   ~/positional_embeddings                                 128x64
        dense   transformer/~/layer_norm/scale                          64
        pruned  transformer/~/multi_head_attention/query/w              64x64
        pruned  transformer/mlp/~/linear_0/w                            64x256
        dense   transformer/mlp/~/linear_0/b                            256
        pruned  res_net50/~/initial_conv/w                              7x7x3x64
        dense   res_net50/~/initial_batchnorm/scale                     1x1x1x64
        pruned  lstm/linear/w                                           128x256
        pruned  gru/w_i                                                 64x192
        pruned  gru/w_h                                                 64x192
        pruned  vanilla_rnn/linear_1/w                                  64x64
        pruned  conv2_dlstm/input_to_hidden/w                           3x3x64x256
        pruned  depthwise_conv2_d/w                                     3x3x1x64
    """,
    "Keras": """
        dense   embedding/embeddings                                    999x64
        dense   position_embedding/embeddings                           128x64
        dense   layer_normalization/gamma                               64
        pruned  conv2d_1/kernel                                         3x3x3x64
        pruned  separable_conv2d/depthwise_kernel                       3x3x64x1
        pruned  separable_conv2d/pointwise_kernel                       1x1x64x128
        pruned  lstm/lstm_cell/kernel                                   64x256
        pruned  lstm/lstm_cell/recurrent_kernel                         64x256
        pruned  dense/kernel                                            64x10
    """,
    # --- the names of PyTorch, which Equinox has too
    "torchvision ResNet, DenseNet, EfficientNet": """
        pruned  conv1/weight                                            64x3x7x7
        dense   bn1/weight                                              64
        pruned  layer1/0/downsample/0/weight                            256x64x1x1
        dense   layer1/0/downsample/1/weight                            256
        pruned  features/0/0/weight                                     32x3x3x3
        pruned  features/conv0/weight                                   64x3x7x7
        dense   features/norm5/weight                                   1024
        pruned  classifier/weight                                       1000x1024
        pruned  fc/weight                                               1000x512
    """,
    "timm and torchvision ViT, Swin, ConvNeXt": """
        dense   cls_token                                               1x1x768
        dense   pos_embed                                               1x197x768
        pruned  patch_embed/proj/weight                                 768x3x16x16
        dense   patch_embed/norm/weight                                 96
        dense   blocks/0/norm1/weight                                   768
        pruned  blocks/0/attn/qkv/weight                                2304x768
        pruned  blocks/0/mlp/fc1/weight                                 3072x768
        dense   fc_norm/weight                                          768
        pruned  head/weight                                             1000x768
        dense   layers/0/blocks/0/attn/relative_position_bias_table     169x3
        pruned  layers/0/downsample/reduction/weight                    192x384
        pruned  encoder/layers/encoder_layer_0/self_attention/in_proj_weight  2304x768
        dense   encoder/layers/encoder_layer_0/ln_1/weight              768
        dense   stages/0/blocks/0/gamma                                 96
        pruned  stem/0/weight                                           96x3x4x4
    """,
    "GPT, BERT, NeoX, Llama, T5 by the names of PyTorch": """
        dense   transformer/wte/weight                                  50257x768
        dense   transformer/wpe/weight                                  1024x768
        pruned  transformer/h/0/attn/c_attn/weight                      768x2304
        dense   bert/embeddings/word_embeddings/weight                  30522x768
        dense   bert/embeddings/position_embeddings/weight              512x768
        pruned  bert/encoder/layer/0/attention/self/query/weight        768x768
        dense   gpt_neox/embed_in/weight                                50432x512
        pruned  embed_out/weight                                        50432x512
        dense   tok_embeddings/weight                                   32000x4096
        dense   layers/0/attention_norm/weight                          4096
        pruned  layers/0/feed_forward/w1/weight                         11008x4096
        dense   layers/0/SelfAttention/relative_attention_bias/weight   32x8
        dense   backbone/norm_f/weight                                  768
    """,
    "DiT, DETR, latent diffusion by the names of PyTorch": """
        pruned  x_embedder/proj/weight                                  1152x4x2x2
        dense   y_embedder/embedding_table/weight                       1001x1152
        pruned  t_embedder/mlp/0/weight                                 1152x256
        pruned  blocks/0/adaLN_modulation/1/weight                      6912x1152
        dense   query_embed/weight                                      100x256
        pruned  time_embed/0/weight                                     1280x320
        dense   quantize/codebook/weight                                1024x256
    """,
    "PyTorch and Equinox recurrent": """
        pruned  weight_ih_l0                                            256x64
        pruned  lstm/weight_hh_l0                                       256x64
        pruned  lstm/weight_ih_l1_reverse                               256x64
        pruned  lstm/weight_hr_l0                                       32x64
        dense   lstm/bias_ih_l0                                         256
        pruned  cell/weight_ih                                          256x64
        pruned  cell/weight_hh                                          256x64
        pruned  rnn/w_ih                                                64x64
        pruned  rnn/w_hh                                                64x64
    """,
    # --- by hand
    "parameters by hand": """
        pruned  kernel                                                  64x64
        pruned  w                                                       64x64
        pruned  layers/0/W                                              64x64
        dense   mlp/w1                                                  64x64
        dense   mlp/b1                                                  64
        dense   wte                                                     999x64
        dense   tok_embed_weight                                        999x64
        dense   0/1                                                     64x64
    """,
    "embeddings and positions by any name": """
        dense   wte/kernel                                              99x8
        dense   wpe/weight                                              99x8
        dense   embeddings/weight                                       99x8
        dense   Embedding_0/weight                                      99x8
        dense   tok_emb/kernel                                          99x8
        dense   tokenEmbedding/weight                                   99x8
        dense   token_embedding/weight                                  99x8
        dense   wordEmb/weight                                          99x8
        dense   embedder/weight                                         99x8
        dense   embed_tokens/weight                                     99x8
        dense   embedding_layer/weight                                  99x8
        dense   node_embeds/0/weight                                    99x8
        dense   pos_embedding/weight                                    1x99x8
        dense   posemb/kernel                                           99x8
        dense   pos_emb/weight                                          99x8
        dense   PositionalEncoding_0/weight                             99x8
        dense   rel_pos_bias/weight                                     99x8
        dense   lookup_table/weight                                     99x8
    """,
    "norms by any name": """
        dense   LayerNorm_0/weight                                      8x16
        dense   RMSNorm/kernel                                          8x16
        dense   GroupNorm32/weight                                      8x16
        dense   BatchNorm2d_0/weight                                    8x16
        dense   bn1/kernel                                              1x16
        dense   bn/weight                                               1x16
        dense   gn_root/weight                                          8x16
        dense   batchnorm/weight                                        8x16
        dense   ln_1/weight                                             8x16
        dense   ln_f/weight                                             8x16
        dense   layer_norm/weight                                       8x16
        dense   batch_normalization_3/weight                            8x16
        dense   norms/0/weight                                          8x16
        dense   conv_norm/weight                                        8x16
        dense   norm_out/weight                                         8x16
    """,
    # --- names that only look like it
    "no embedding, no position, no norm": """
        pruned  normal/kernel                                           8x8
        pruned  abnormal/kernel                                         8x8
        pruned  normalizer/kernel                                       8x8
        pruned  enormous/kernel                                         8x8
        pruned  norm_proj/kernel                                        8x8
        pruned  ln_linear/kernel                                        8x8
        pruned  subnet/kernel                                           8x8
        pruned  embedding_to_hidden/kernel                              8x8
        pruned  hidden_to_embedding/kernel                              8x8
        pruned  embedding_proj/kernel                                   8x8
        pruned  wpe_proj/kernel                                         8x8
        pruned  linear_pos/weight                                       8x8
        pruned  embedded/kernel                                         8x8
        pruned  unembed/kernel                                          8x99
        pruned  embedding/encoder/kernel                                8x8
        pruned  encoder/kernel                                          8x8
        pruned  encoding/kernel                                         8x8
        pruned  position/kernel                                         8x3
        pruned  tokens/kernel                                           8x8
        pruned  member/kernel                                           8x8
        pruned  timestamp/kernel                                        8x8
        pruned  bias_net/kernel                                         8x8
        pruned  table_head/kernel                                       8x8
    """,
    "the embedding of patches is a convolution or a projection": """
        pruned  patch_embed/kernel                                      16x16x3x64
        pruned  patch_embed/proj/kernel                                 16x16x3x64
        pruned  patch_embedding/kernel                                  768x64
        pruned  PatchEmbed_0/kernel                                     16x16x3x64
        pruned  to_patch_embedding/1/weight                             64x768
        pruned  linear_embedding/kernel                                 768x64
        pruned  conv_embed/weight                                       64x3x7x7
        pruned  embed/kernel                                            4x4x3x64
        dense   embed/kernel                                            768x64
        dense   pos_embed/kernel                                        1x14x14x64
    """,
}


def lines(network):
    for line in NETWORKS[network].strip().splitlines():
        verdict, path, shape = line.split()
        yield verdict, path, tuple(map(int, shape.split("x")))


@pytest.mark.parametrize("network", NETWORKS)
def test_the_default_on_the_names_of(network):
    wrong = [
        f"{path} {shape} is to be {verdict}"
        for verdict, path, shape in lines(network)
        if is_weight(path, len(shape)) != (verdict == "pruned")
    ]
    assert wrong == []


def test_the_default_of_methods_is_that_of_names():
    leaves = {p: jax.ShapeDtypeStruct(s, jnp.float32) for _, p, s in lines("HF GPT-2")}
    pruned = [path for verdict, path, _ in lines("HF GPT-2") if verdict == "pruned"]
    assert jaxsparse.prunable_paths(leaves) == sorted(pruned)
    masks = jaxsparse.static(sparsity=0.5, total_steps=1).plan(leaves).sizes
    assert sorted(masks) == sorted(pruned)


@pytest.mark.parametrize(
    ("name", "rank", "said"),
    [
        ("", 2, None),
        ("0", 2, None),
        ("_", 2, None),
        ("Dense_0", 2, True),
        ("MultiHeadAttention", 2, True),
        ("LSTMCell", 2, True),
        ("Embed", 2, False),
        ("Embed", 3, True),
        ("PositionEmbed", 3, False),
        ("WPE", 3, False),
        ("Block", 2, None),
    ],
)
def test_what_a_name_says(name, rank, said):
    assert says(name, rank) is said


@pytest.mark.parametrize("rank", [0, 1])
def test_vectors_and_scalars_are_no_weights(rank):
    assert not is_weight("fc/kernel", rank)
